"""`consilia ledger`: a run told from its chain, links between artifact, update, round and reward, and hostile input."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consilia.cli import app
from consilia.cli.ledger import words
from consilia.cli.ledger.words import Speaker
from consilia.cli.output import printable
from consilia.errors import ChainError, InputError, LedgerError
from consilia.ledger.contracts import Argument
from consilia.ledger.history import Logged
from consilia.roles.audit.view import open_view
from consilia.values import Digest
from tests.consortium import REWARD_WEI, Consortium, consortium

LISTINGS = ["status", "status --task TASK", "blocks", "blocks --all", "events", "tx", "rewards"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Three hospitals trained for two rounds; the third one's updates were full of NaN. The node still serves."""
    with pytest.MonkeyPatch.context() as patch, consortium(tmp_path_factory.mktemp("seen"), patch, 3) as made:
        made.send_nan(2)
        made.start_server(rounds=2)
        made.finish()
        network = json.loads((made.home / "network.json").read_text())
        (made.home / "network.json").write_text(
            json.dumps(network | {"hospitals": made.names})
        )  # all, by name
        yield made


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Contracts and nothing else."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("empty"), patch, 2) as made,
    ):
        yield made


def ledger(*arguments: str, columns: int = 100) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(
        app, ["ledger", *arguments], env={"COLUMNS": str(columns)}, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def records(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger(*arguments, "--format", "json").splitlines()]


def number(made: Consortium) -> str:
    """The id of the one task, as a person types it."""
    return str(made.task().task_id)


def home(made: Consortium) -> list[str]:
    return ["--home", str(made.home)]


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", LISTINGS)
def test_tables_fit_and_cut_nothing_off(run: Consortium, command: str, columns: int) -> None:
    said = ledger(*command.replace("TASK", number(run)).split(), *home(run), columns=columns)
    assert said.strip() and max(map(len, said.splitlines())) <= columns
    assert "hospital-1" in said
    headings = next((line for line in said.splitlines() if line.startswith(("block", "hospital "))), "")
    assert command.startswith("status") or headings.split()[-1] in ("recorded", "event", "in")


def test_a_task_is_told_with_its_links(run: Consortium) -> None:
    (task,) = records("status", "--task", number(run), *home(run))
    names = {hospital["hospital"]["name"] for hospital in task["enrolled"]}
    assert names == {"hospital-1", "hospital-2", "hospital-3"}
    assert (task["phase"], task["server"]["name"], len(task["rounds"])) == ("finished", "server", 2)
    first, second = task["rounds"]
    assert first["next_model"]["root"] == second["model"]["root"]
    assert first["next_model"]["digest"] == second["model"]["digest"]
    for current in task["rounds"]:
        weights = {u["hospital"]["name"]: (u["included"], u["weight"]) for u in current["updates"]}
        assert weights == {
            "hospital-1": (True, 1 / 3),
            "hospital-2": (True, 2 / 3),
            "hospital-3": (False, 0.0),
        }
        for update in current["updates"]:
            assert update["deed"]["by"] == update["hospital"]
            assert update["deed"]["miner"]["name"] == "hospital-1"
            assert (
                run.object_path(Digest.from_hex(update["artifact"]["root"])).stat().st_size
                == (update["artifact"]["size_bytes"])
            )
    shares = {
        r["hospital"]["name"]: int(r["share_wei"]) for r in task["rewards"] if r["share_wei"] is not None
    }
    assert sum(shares.values()) == REWARD_WEI == int(task["reward_wei"])
    assert {name: wei for name, wei in shares.items() if wei} == {
        "hospital-1": REWARD_WEI // 3 + 1,
        "hospital-2": REWARD_WEI - REWARD_WEI // 3 - 1,
    }
    assert all(r["claimed"]["by"] == r["hospital"] for r in task["rewards"] if r["claimed"])


def test_every_event_of_every_contract_is_there(run: Consortium) -> None:
    told = records("events", *home(run))
    rpc = run.hospitals[0].ledger._chain.rpc
    addresses = list(run.deployment.contracts.values())
    logs = rpc.call("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", "address": addresses})
    assert [(e["transaction"], e["log_index"]) for e in told] == [
        (log["transactionHash"], int(log["logIndex"], 16)) for log in logs
    ]
    assert (
        {"registry", "training", "escrow"} <= {e["contract"] for e in told} <= set(run.deployment.contracts)
    )
    assert all(e["event"] and e["by"]["name"] for e in told)
    of_task = records("events", "--task", number(run), *home(run))
    assert {e["contract"] for e in of_task} == {"training", "escrow"}
    assert {e["task_id"] for e in of_task} == {int(number(run))}


def test_blocks_tell_who_mined_and_who_recorded(run: Consortium) -> None:
    listed = records("blocks", *home(run))
    everything = records("blocks", "--all", *home(run))
    assert [b["block_number"] for b in everything] == list(range(len(everything)))
    assert {b["hash"] for b in listed} < {b["hash"] for b in everything}
    for parent, child in pairwise(everything):
        assert child["parent_hash"] == parent["hash"]
    assert all(t["events"] for b in listed for t in b["transactions"])
    task_blocks = {b["block_number"] for b in records("blocks", "--task", number(run), *home(run))}
    assert task_blocks == {e["block_number"] for e in records("events", "--task", number(run), *home(run))}
    part = records("blocks", "--from", "4", "--to", "6", "--all", *home(run))
    assert [b["block_number"] for b in part] == [4, 5, 6]


def test_a_transaction_by_its_first_digits(run: Consortium) -> None:
    update = next(e for e in records("events", *home(run)) if e["event"] == "UpdateRegistered")
    (found,) = records("tx", update["transaction"][:12], *home(run))
    assert found["transaction"] == update["transaction"]
    assert (found["contract"], found["function"], found["succeeded"]) == ("training", "register_update", True)
    assert found["arguments"]["root"] == update["arguments"]["root"]
    assert int(found["fee_wei"]) > 0
    assert update["arguments"]["root"] in ledger("tx", update["transaction"], *home(run)).replace("\n", "")


@pytest.mark.parametrize("name", ["0x12", "nonsense", "f" * 64, "ffffffff", "0x" + "1" * 65])
def test_a_transaction_that_is_not_there_is_wrong_use(run: Consortium, name: str) -> None:
    with pytest.raises(InputError, match="transaction"):
        ledger("tx", name, *home(run))


def test_a_refused_transaction_is_called_so(run: Consortium) -> None:
    hospital = run.hospitals[0].ledger._sender
    assert hospital is not None
    nonce = int(
        run.hospitals[0].ledger._chain.rpc.call("eth_getTransactionCount", hospital.address, "latest"), 16
    )
    call = {"to": run.deployment.training, "data": "0x" + bytes(4).hex(), "gas": 100_000, "nonce": nonce}
    fees = {"chainId": run.deployment.chain_id, "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 1, "type": 2}
    raw = hospital._account.sign_transaction(call | fees).raw_transaction
    sent = run.hospitals[0].ledger._chain.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    (found,) = records("tx", sent, *home(run))
    assert found["succeeded"] is False and found["contract"] == "training" and found["function"] is None
    assert "REFUSED" in ledger("tx", sent, *home(run))
    assert "training.unknown function" in ledger("blocks", "--all", *home(run))


@pytest.mark.parametrize("command", ["status", "blocks", "events", "tx", "rewards"])
def test_a_node_tells_the_same_as_the_chain_file(run: Consortium, command: str) -> None:
    at_node = ["--url", run.url, "--deployment", str(run.home / "deployment.json")]
    named = ["--url", run.url, *home(run)]
    by_file = [record | {"source": ""} for record in records(command, *home(run))]
    assert [record | {"source": ""} for record in records(command, *named)] == by_file
    strangers = json.dumps(records(command, *at_node))
    assert '"name": "hospital-1"' not in strangers and run.addresses[0] in strangers


def test_a_party_sees_its_own_chain_file(run: Consortium) -> None:
    (told,) = records("status", "--home", str(run.home / "server"))
    assert told["source"] == run.url
    assert {m["account"]["name"] for m in told["members"]} == {"server", None}


def test_an_empty_ledger_says_so(empty: Consortium) -> None:
    assert "No task was published yet." in ledger("status", *home(empty))
    assert "nobody has earned" in ledger("rewards", *home(empty))
    head = records("status", *home(empty))[0]["height"]
    for command in ("blocks", "events", "tx"):
        assert ledger(command, "--from", str(head + 1), *home(empty)).startswith("No ")
        assert records(command, "--from", str(head + 1), *home(empty)) == []
    with pytest.raises(InputError, match="no task 7 on this ledger; its tasks: none"):
        ledger("status", "--task", "7", *home(empty))


def test_a_forged_share_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server pays everything to one hospital; what the examples give stands beside it."""
    with consortium(tmp_path, monkeypatch, 2) as made:
        friend = made.addresses[0]
        monkeypatch.setattr(
            "consilia.roles.server.shares_by_samples", lambda samples, pool_wei: {friend: pool_wei}
        )
        made.start_server()
        made.finish()
        shares = {
            r["hospital"]["name"]: r for r in records("rewards", *home(made)) if r["record"] == "reward"
        }
        assert int(shares["hospital-1"]["share_wei"]) == REWARD_WEI
        assert int(shares["hospital-1"]["expected_wei"]) == REWARD_WEI // 3 + 1
        assert shares[None]["share_wei"] is None
        said = ledger("rewards", *home(made), columns=80)
        assert "not what the registered examples give" in said and max(map(len, said.splitlines())) <= 80


def test_an_event_of_a_contract_without_phrases_is_told_by_its_own_table(run: Consortium) -> None:
    say = Speaker({run.addresses[0]: "hospital-1"})
    arguments = (
        Argument("deal_id", "uint256", 3),
        Argument("buyer", "address", run.addresses[0]),
        Argument("price_wei", "uint256", 2 * 10**18),
        Argument("root", "bytes32", bytes(range(32))),
        Argument("note", "string", "\x1b[2Jgone\u202e"),
    )
    event = Logged("exchange", "OfferMade", arguments, 1, 0, Digest(bytes(32)), {})
    assert say.event(event) == (
        "exchange: offer made (deal_id=3, buyer=hospital-1, price_wei=2 ether, root=00010203, note=�[2Jgone�)"
    )
    unknown = Logged("exchange", "", (), 1, 0, Digest(bytes(32)), {})
    assert say.event(unknown) == "exchange: unknown event"
    assert say.events([event] * 5) == ["5 × offer made"]


def test_the_protocols_own_events_need_no_phrases(run: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PHRASES", {})
    said = ledger("events", *home(run))
    assert "training: round opened" in said and "registry: member admitted" in said


def test_what_the_ledger_says_cannot_steer_a_terminal() -> None:
    assert printable("\x1b]0;title\x07 \x9b1m ‮ ok") == "�]0;title� �1m � ok"


def consilia(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "consilia", "ledger", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_node_that_is_down_has_its_exit_code_and_advice(run: Consortium) -> None:
    deployment = str(run.home / "deployment.json")
    done = consilia("status", "--url", "http://127.0.0.1:9", "--deployment", deployment)
    assert done.returncode == 3 and "start it, or correct the URL" in done.stderr and "--home" in done.stderr
    assert consilia("status").returncode == 2
    assert consilia("status", "--url", run.url).returncode == 2


def test_another_chain_or_home_is_refused(run: Consortium, empty: Consortium, tmp_path: Path) -> None:
    deployment = json.loads((run.home / "deployment.json").read_text())
    other = tmp_path / "deployment.json"
    other.write_text(json.dumps(deployment | {"chain_id": 1}))
    with pytest.raises(LedgerError, match="expected chain 1 at"):
        ledger("status", "--url", run.url, "--deployment", str(other))
    with pytest.raises(LedgerError, match="found no code"):
        ledger("status", "--url", empty.url, "--deployment", str(run.home / "deployment.json"))
    with pytest.raises(InputError, match=r"network\.json or consilia\.toml"):
        ledger("status", "--home", str(tmp_path))
    with pytest.raises(InputError, match="not both"):
        ledger("blocks", "--all", "--task", number(run), *home(run))


def test_a_damaged_chain_file_is_an_error_and_no_traceback(run: Consortium, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.home, copy)
    connection = sqlite3.connect(copy / "hospital-1" / "node" / "chain.sqlite")
    connection.execute("UPDATE blocks SET header = x'00' WHERE number = 3")
    connection.commit()
    connection.close()
    with pytest.raises((LedgerError, ChainError)):
        ledger("blocks", "--all", "--home", str(copy))


def test_a_view_needs_to_know_which_ledger() -> None:
    with pytest.raises(InputError, match="--home DIR, or --url"), open_view(None, None, None):
        pass
