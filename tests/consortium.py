"""A whole consortium in one process: real contracts on a real chain, real roles, a model of three tensors.

Its methods read like attacks. Hospitals go step by step when the test says so; the server runs in a thread, as
it blocks. One clock serves the chain and all parties: `let_pass` makes deadlines go by.
"""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account

from consilia.cli.demo.layout import MemberKeys, founders_of
from consilia.crypto.keys import Identity, ScryptCost, load_account, save_account, save_identity
from consilia.errors import LedgerUnreachableError
from consilia.federation.tensors import LOCAL_KEY, Float32Array, TensorFile, local_names, write_tensors
from consilia.ledger.deployment import contract_address, deploy
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Application, Kind
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.protocols.training import SkippedStudy
from consilia.roles.hospital import Hospital
from consilia.roles.keys import make_keys, open_keys
from consilia.roles.server import Server
from consilia.roles.training.task_log import TaskLog
from consilia.settings import HospitalSettings, ServerSettings, load
from consilia.settings.network import Network
from consilia.settings.sections import KeysSection, StoreSection
from consilia.values import Address, Digest
from tests.softhsm import SoftHsm

CHAIN_ID = 2407
KEYS_IN_FILES = """account = "keys/account.json"
identity = "keys/identity.key"
password_file = "keys/password"
"""
PASSWORD = "for tests"
REWARD_WEI = 10**18 + 1
SHAPES: dict[str, tuple[int, ...]] = {"head.bias": (3,), "head.weight": (4, 3), "scale": ()}
PAST_SECONDS = 30 * 86_400
"""The clocks begin that long ago: no block may come from the future, however far a test lets them jump."""
PATIENCE_SECONDS = 60.0
"""No test asserts on time; this only ends one that would hang."""


def spec_toml(hospitals: int, **terms: object) -> str:
    """A TaskSpec for the model of three tensors; `terms`, `rounds`, lines of `training` and of `model` may be set."""
    rounds, training, model = terms.pop("rounds", 1), terms.pop("training", ""), terms.pop("model", "")
    lines = {"quorum": 2, "max_hospitals": hospitals, "enrol_seconds": 600, "round_seconds": 600}
    lines |= {"grace_seconds": 300.0, "reward_wei": REWARD_WEI} | terms
    return f"""title = "three tensors"
[purpose]
object_of_learning = "lesion"
application = "CT"
[data]
categories = ["lesion"]
[model]
image_size = 64
{model}
[training]
rounds = {rounds}
local_epochs = 1.0
{training}
[terms]
""" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def write_first_model(spec: TaskSpec, path: Path) -> None:
    """w_0: every number is a half; where the task keeps normalisation at home, that is the scale."""
    tensors = ((name, np.full(shape, 0.5, np.float32)) for name, shape in SHAPES.items())
    local = {LOCAL_KEY: local_names(["scale"])} if spec.training.local_norm else None
    write_tensors(path, SHAPES, tensors, local)


def read_weights(path: Path) -> dict[str, Float32Array]:
    """All tensors of a weights file."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


class TinyTrainer:
    """Adds the hospital's number to every weight in a round, on `10 * number` examples."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_examples = 10 * number
        self.studies_used = number
        self.studies_skipped = (SkippedStudy("broken.dcm", "it ends too early"),)
        self.shapes = dict(SHAPES)
        self.weights: dict[str, Float32Array] = {}
        self.spoil: Callable[[dict[str, Float32Array]], None] = lambda weights: None
        """What a liar does to its weights before it hands them in."""

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        self.weights = {
            name: tensor + np.float32(self.number) for name, tensor in read_weights(weights).items()
        }
        self.spoil(self.weights)
        return 0.25, 1

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        write_tensors(path, shapes, ((name, self.weights[name]) for name in sorted(shapes)), metadata)


@dataclass
class Steps:
    """What a party reported, to be read by tests."""

    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, step: str, **facts: Any) -> None:
        self.said.append((step, facts))

    def named(self, step: str) -> list[dict[str, Any]]:
        """The facts of every step of that name."""
        return [facts for name, facts in self.said if name == step]


class Clock:
    """The parties' `time` module: it runs like the real one and can jump."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds


class _Gone:
    """In place of the ledger of a party that is to end."""

    def __getattr__(self, name: str) -> Any:
        raise LedgerUnreachableError("this party was stopped")


class ServerThread:
    """`Server.run_task` or `Server.serve` beside the test; `result` hands on what it returned or raised."""

    def __init__(self, run: Callable[[], TaskLog | None]) -> None:
        self._outcome: TaskLog | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), name="server", daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[], TaskLog | None]) -> None:
        try:
            self._outcome = run()
        except BaseException as error:  # noqa: BLE001  # handed on by `result`
            self._outcome = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> TaskLog:
        self._thread.join(PATIENCE_SECONDS)
        assert self._outcome is not None, "the server is still at work"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


class Consortium:
    """A server and some hospitals around one mined chain; use `consortium(...)` to make and close one."""

    def __init__(self, home: Path, hospitals: int, softhsm: SoftHsm | None = None) -> None:
        self.home = home
        self.clock = Clock()
        self.names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        in_token = {} if softhsm is None else {"hospital-2": softhsm}
        members = [
            make_member_in_token(home / name, name, in_token[name])
            if name in in_token
            else make_member(home / name, name)
            for name in [*self.names, "server"]
        ]
        self.addresses: list[Address] = [member.account.address for member in members[:-1]]
        self.server_address: Address = members[-1].account.address
        self.clock.ahead_seconds = -PAST_SECONDS
        now = int(self.clock.time())
        self.genesis = Genesis(
            chain_id=CHAIN_ID,
            timestamp=now - 60,
            miners=(members[0].account.address,),
            registry=contract_address(members[-1].account.address, 0),
            balances_wei={member.account.address: 10**21 for member in members},
            min_difficulty=1,
        )
        self.genesis.save(home / "genesis.json")
        (home / "hospital-1" / "node").mkdir()
        key = NodeKey(bytes(members[0].account.key))
        self.node = LocalNode(home / "hospital-1" / "node" / "chain.sqlite", self.genesis, key)
        self.node.advance(-PAST_SECONDS)
        self.url = self.node.serve()
        outbox = Outbox(home / "server" / "outbox.sqlite")
        self.deployment = deploy(self.url, members[-1].account, founders_of(members, now), outbox)
        outbox.close()
        self.deployment.save(home / "deployment.json")
        for name in [*self.names, "server"]:
            keys = in_token[name].toml(str(home)) if name in in_token else KEYS_IN_FILES
            _write_settings(home / name, name, self.url, keys)
        Network(
            genesis=Path("genesis.json"),
            deployment=Path("deployment.json"),
            store=StoreSection(path=Path("store")),
            server=Path("server"),
            hospitals=(Path("hospital-1"),),  # the one with a node
        ).save(home)
        self.trainers = [TinyTrainer(number) for number in range(1, hospitals + 1)]
        self.steps = {name: Steps() for name in [*self.names, "server"]}
        self._started: list[Hospital | Server] = []
        self.hospitals = [self.new_hospital(index) for index in range(hospitals)]
        self.server = self.new_server()
        self.thread: ServerThread | None = None

    def new_hospital(self, index: int) -> Hospital:
        """A hospital's process, started (again) on its home."""
        name = self.names[index]
        settings = load(HospitalSettings, self.home / name)
        steps = self.steps[name]
        hospital = Hospital(self.home / name, settings, steps, lambda spec, seed: self.trainers[index])
        self._started.append(hospital)
        return hospital

    def restart_hospital(self, index: int) -> Hospital:
        """As after kill -9: nothing is left of it but its home."""
        self.hospitals[index] = self.new_hospital(index)
        return self.hospitals[index]

    def new_server(self) -> Server:
        """The server's process, started (again) on its home."""
        settings = load(ServerSettings, self.home / "server")
        server = Server(self.home / "server", settings, self.steps["server"])
        self._started.append(server)
        return server

    def server_settings(self) -> ServerSettings:
        """The settings in the server's home."""
        return load(ServerSettings, self.home / "server")

    # The ordinary course

    def start_server(self, **terms: object) -> ServerThread:
        """Let the server run a task from here on."""
        spec = parse_toml(spec_toml(len(self.hospitals), **terms))
        server = self.server
        self.thread = ServerThread(lambda: server.run_task(spec, write_first_model))
        return self.thread

    def step(self, *indices: int) -> None:
        """Let some hospitals (all by default) do the next thing that each task asks of them."""
        for index in indices or range(len(self.hospitals)):
            hospital = self.hospitals[index]
            for task in hospital.tasks().values():
                hospital.advance(task)

    def until(self, reached: Callable[[dict[int, TaskLog]], object], *indices: int) -> TaskLog:
        """Step these hospitals until the ledger tells what the test waits for; the newest task."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            tasks = self.tasks()
            if tasks and reached(tasks):
                return newest(tasks)
            assert time.monotonic() < deadline, (
                f"still waiting; the server said {self.steps['server'].said[-3:]}"
            )
            if indices:
                self.step(*indices)
            time.sleep(0.01)

    def enrol(self, *indices: int) -> TaskLog:
        """Hospitals enrol and do nothing else; the server starts round 0."""
        self.until(lambda tasks: tasks)
        self.step(*indices)
        return self.until(lambda tasks: newest(tasks).rounds)

    def train(self, round_index: int) -> TaskLog:
        """Every hospital hands in one update, and the server closes the round."""
        self.until(lambda tasks: len(newest(tasks).rounds) > round_index)
        self.step()
        return self.until(lambda tasks: newest(tasks).rounds[round_index].closed)

    def finish(self, *indices: int) -> TaskLog:
        """Step hospitals until the task is finished, settled, and they have claimed."""
        everybody = indices or tuple(range(len(self.hospitals)))
        assert self.thread is not None
        task = self.until(lambda tasks: newest(tasks).shares_wei, *everybody)
        self.thread.result()
        self.step(*everybody)
        return self.tasks()[task.task_id]

    def task(self) -> TaskLog:
        """The newest task, as the ledger tells it now."""
        return newest(self.tasks())

    def tasks(self) -> dict[int, TaskLog]:
        """What the ledger tells everybody now."""
        return self.hospitals[0].tasks()

    def let_pass(self, seconds: float) -> None:
        """Make the clocks of the chain and of every party jump."""
        self.clock.ahead_seconds += seconds
        self.node.advance(seconds)

    def server_said(self, step: str) -> list[dict[str, Any]]:
        """What the server reported under a name."""
        return self.steps["server"].named(step)

    # What members decide

    def change_recipient_key(self, index: int, recipient_key: bytes) -> None:
        """A hospital asks for another key, and everybody agrees unseen."""
        record = self.hospitals[index].ledger.member(self.addresses[index])
        application = Application(
            account=record.account,
            recipient_key=recipient_key,
            role=record.role,
            certificate_digest=record.certificate_digest,
            valid_from=record.valid_from,
            valid_to=record.valid_to,
            replaces=record.account,
            proofs_digest=Digest.of(b""),
        )
        account = load_account(self.home / self.names[index] / "keys" / "account.json", PASSWORD)
        signature = application.sign(account, self.deployment.chain_id, self.deployment.registry)
        registry = self.hospitals[index].ledger.registry
        registry.propose_application(f"propose/{len(registry.proposals())}", application, signature, b"")
        self.agree()

    def decide(self, kind: Kind, index: int) -> None:
        """All other members suspend a hospital, or lift that."""
        registry = self.server.ledger.registry
        registry.propose(f"propose/{len(registry.proposals())}", kind, self.addresses[index])
        self.agree()

    def agree(self) -> None:
        """Members vote for what was proposed last until it is decided."""
        newest = self.hospitals[0].ledger.registry.proposals()[-1]
        for party in (*self.hospitals, self.server):
            registry = party.ledger.registry
            if registry.proposal(newest.proposal_id).enacted:
                return
            if not registry.has_voted(newest.proposal_id, party.address):
                registry.vote(f"vote/{newest.proposal_id}", newest.proposal_id)

    # Attacks and accidents

    def send_nan(self, index: int) -> None:
        """The hospital's weights hold one number that is none."""
        self.trainers[index].spoil = lambda weights: weights["head.bias"].__setitem__(1, np.nan)

    def send_wrong_shapes(self, index: int) -> None:
        """The hospital's weights are those of another model."""
        self.trainers[index].spoil = lambda weights: weights.update({"head.bias": np.zeros(4, np.float32)})

    def send_far_away(self, index: int) -> None:
        """The hospital's weights are all finite, and far beyond the task's bound."""
        self.trainers[index].spoil = lambda weights: weights.update({"scale": np.float32(1e6).reshape(())})

    def swap_updates(self, index: int, other: int) -> None:
        """Two hospitals register each other's envelopes."""
        held: dict[int, tuple[str, dict[str, Any]]] = {}
        originals = {i: self.hospitals[i].ledger.register_update for i in (index, other)}

        def hold(i: int) -> Callable[..., None]:
            def register(key: str, task_id: int, round_index: int, **named: Any) -> None:
                held[i] = (key, {"task_id": task_id, "round_index": round_index, **named})
                if len(held) == 2:
                    for mine, theirs in ((index, other), (other, index)):
                        envelope = {name: held[theirs][1][name] for name in ("root", "key_hash", "size")}
                        originals[mine](held[mine][0], **(held[mine][1] | envelope))

            return register

        for i in (index, other):
            self._patch(i, "register_update", hold(i))

    def replay_update_of_last_round(self, index: int) -> None:
        """The hospital saves itself the training: in a later round it registers its first envelope again."""
        first: dict[str, Any] = {}

        def change(named: dict[str, Any]) -> dict[str, Any]:
            first.update({} if first else named)
            return first

        self._change_registration(index, change)

    def forge_metrics(self, index: int) -> None:
        """The digest of the metrics on the ledger is not that of the metrics inside the update."""
        self._change_registration(index, lambda named: named | {"metrics_digest": Digest.of(b"better ones")})

    def forge_size(self, index: int) -> None:
        """The size on the ledger is not that of the envelope."""
        self._change_registration(index, lambda named: named | {"size": named["size"] + 1})

    def forge_key_hash(self, index: int) -> None:
        """The hash on the ledger is not that of the envelope's secret: nobody could ever buy this update."""
        self._change_registration(index, lambda named: named | {"key_hash": Digest.of(b"no such secret")})

    def register_what_is_not_there(self, index: int) -> None:
        """The hospital registers a root that the store has never seen."""
        self._change_registration(index, lambda named: named | {"root": Digest.of(b"nothing")})

    def claim_examples(self, index: int, num_examples: int) -> None:
        """The hospital says that it trained on that many examples."""
        self._change_registration(index, lambda named: named | {"num_examples": num_examples})

    def hand_in_after_the_count(self, index: int) -> None:
        """The hospital registers when the server has looked for the last time, and before the round is closed."""
        collect = self.server._collect

        def collect_then_step(*arguments: Any) -> Any:
            examined = collect(*arguments)
            self.step(index)
            return examined

        self.server._collect = collect_then_step

    def silence_the_server(self) -> None:
        """The server stops for good, wherever it is."""
        assert self.thread is not None
        self.server.ledger = _Gone()
        with pytest.raises(LedgerUnreachableError):
            self.thread.result()

    def object_path(self, root: Digest) -> Path:
        """Where the store keeps an object."""
        return self.home / "store" / root.hex()[:2] / root.hex()

    def lose_object(self, root: Digest) -> None:
        """The store loses an object."""
        self.object_path(root).unlink()

    def damage_object(self, root: Digest, at: int = -40) -> None:
        """One bit of an object flips."""
        flip_bit(self.object_path(root), at)

    def _change_registration(self, index: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        honest = self.hospitals[index].ledger.register_update

        def register(key: str, task_id: int, round_index: int, **named: Any) -> None:
            honest(key, task_id, round_index, **change(named))

        self._patch(index, "register_update", register)

    def _patch(self, index: int, name: str, replacement: Callable[..., Any]) -> None:
        setattr(self.hospitals[index].ledger, name, replacement)

    def close(self) -> None:
        """Close the node, so that a server that still waits for it ends, and every party's files."""
        self.node.close()
        for party in self._started:
            party.close()


def newest(tasks: dict[int, TaskLog]) -> TaskLog:
    """The task that was published last."""
    return list(tasks.values())[-1]


def flip_bit(path: Path, at: int) -> None:
    """Flip one bit of the byte at a place, counted from the end if negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@contextmanager
def consortium(
    home: Path, monkeypatch: pytest.MonkeyPatch, hospitals: int = 3, softhsm: SoftHsm | None = None
) -> Iterator[Consortium]:
    """A consortium for one test; with a token the second hospital has both its keys in there."""
    monkeypatch.setattr("consilia.roles.party.WAIT_SECONDS", 0.05)
    made = Consortium(home, hospitals, softhsm)
    for role in ("server", "hospital", "exchange.deals", "diagnosis.consultation", "diagnosis.answering"):
        monkeypatch.setattr(f"consilia.roles.{role}.time", made.clock)
    try:
        yield made
    finally:
        made.close()


def make_member(home: Path, name: str) -> MemberKeys:
    keys = home / "keys"
    keys.mkdir(parents=True)
    member = MemberKeys(name, Account.create(), Identity.generate())
    (keys / "password").touch(mode=0o600)
    (keys / "password").write_text(PASSWORD + "\n")
    save_account(keys / "account.json", member.account, PASSWORD, cost=ScryptCost.TESTS)
    save_identity(keys / "identity.key", member.identity, PASSWORD, cost=ScryptCost.TESTS)
    return member


def make_member_in_token(home: Path, name: str, softhsm: SoftHsm) -> MemberKeys:
    """A member without any key file: account and identity are made in the token, and stay there."""
    home.mkdir(parents=True)
    section = KeysSection.model_validate(tomllib.loads("[keys]\n" + softhsm.toml(str(home.parent)))["keys"])
    make_keys(section, "")
    keys = open_keys(section)
    return MemberKeys(name, keys.signer, keys.opener)


def _write_settings(home: Path, name: str, url: str, keys: str) -> None:
    data = "" if name == "server" else '[data]\npath = "data"\n'
    (home / "consilia.toml").write_text(
        f"""name = "{name}"
[ledger]
url = "{url}"
deployment = "../deployment.json"
confirmations = 1
[store]
path = "../store"
[keys]
{keys}{data}"""
    )
