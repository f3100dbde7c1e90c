"""Whose chain file was cut back, and whose node was only stopped before it heard of its own block."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consilia.crypto.keys import save_account
from consilia.crypto.password_box import ScryptCost
from consilia.errors import AuditError
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.pool import Pool
from consilia.roles.audit.chain import CHAIN_FILE, FORK_BLOCKS, replay_all
from consilia.settings.network import Network
from tests.consortium import Steps
from tests.ledger.embedded.members import KEYS, extend, genesis, payment

DEED = payment(1, 0)
"""What hospital-2 does; its node takes it, and hospital-1's node mines it."""


@pytest.fixture(autouse=True)
def replayed_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fresh processes take ten times as long to start as these chains to replay."""
    monkeypatch.setattr(
        "consilia.roles.audit.chain.ProcessPoolExecutor",
        lambda workers, mp_context: ThreadPoolExecutor(workers),
    )


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """Two hospitals' homes with equal chains of eight blocks."""
    made = genesis()
    made.save(tmp_path / "genesis.json")
    for index, name in enumerate(("hospital-1", "hospital-2")):
        home = tmp_path / name
        (home / "keys").mkdir(parents=True)
        save_account(home / "keys" / "account.json", KEYS[index], "for tests", cost=ScryptCost.TESTS)
        (home / "consilia.toml").write_text(settings(name, port=8545 + index))
        (home / "node").mkdir()
    with_chain(tmp_path, "hospital-1", lambda chain: [extend(chain) for _ in range(8)])
    shutil.copyfile(tmp_path / "hospital-1" / CHAIN_FILE, tmp_path / "hospital-2" / CHAIN_FILE)
    hospitals = (tmp_path / "hospital-1", tmp_path / "hospital-2")
    unused = tmp_path / "unused"
    return Network(
        genesis=tmp_path / "genesis.json", deployment=unused, store=unused, server=unused, hospitals=hospitals
    )


def settings(name: str, port: int, node_port: int | None = None) -> str:
    return f"""name = "{name}"
[ledger]
url = "http://127.0.0.1:{port}"
deployment = "unused"
[store]
path = "unused"
[keys]
account = "keys/account.json"
identity = "unused"
password_file = "unused"
[data]
path = "unused"
[node]
genesis = "../genesis.json"
port = {node_port or port}
"""


def with_chain(home: Path, name: str, act: Callable[[Chain], object]) -> None:
    chain = Chain(home / name / CHAIN_FILE, Genesis.load(home / "genesis.json"))
    act(chain)
    chain.close()


def take(chain: Chain) -> None:
    """The node takes the deed, and writes it down, before it passes it on."""
    Pool(chain).add(DEED.raw)


def test_equal_files_are_in_order(network: Network) -> None:
    said = Steps()
    report, _ = replay_all(network, said)
    assert report.height == 8 and {step for step, _ in said.said} == {"chain replayed"}


def test_a_node_stopped_before_it_heard_its_own_block_is_not_accused(
    network: Network, tmp_path: Path
) -> None:
    with_chain(tmp_path, "hospital-2", take)
    with_chain(tmp_path, "hospital-1", lambda chain: (extend(chain, [DEED]), extend(chain)))
    said = Steps()
    report, best = replay_all(network, said)
    assert report.height == 10 and "hospital-1" in str(best)
    (found,) = said.named("own deed found in another's chain")
    assert (found["file"], found["transaction"], found["block"]) == ("hospital-2", f"0x{DEED.hash.hex()}", 9)


def test_a_deed_on_a_losing_tip_is_not_lost(network: Network, tmp_path: Path) -> None:
    """hospital-2 mined its deed itself, on a branch that lost by the time everybody stopped."""
    with_chain(tmp_path, "hospital-2", lambda chain: (take(chain), extend(chain, [DEED])))
    with_chain(tmp_path, "hospital-1", lambda chain: (extend(chain), extend(chain, [DEED])))
    assert replay_all(network, Steps())[0].height == 10


def test_a_deed_in_nobodys_block_is_not_yet_mined(network: Network, tmp_path: Path) -> None:
    with_chain(tmp_path, "hospital-2", take)
    said = Steps()
    replay_all(network, said)
    assert said.named("own deed not yet mined") == [
        {"file": "hospital-2", "transaction": f"0x{DEED.hash.hex()}"}
    ]


def test_a_file_that_was_cut_back_is_found(network: Network, tmp_path: Path) -> None:
    """The deed was in its file, which the node never loses: it was put back to a copy from before."""
    before = tmp_path / "before.sqlite"
    shutil.copyfile(tmp_path / "hospital-2" / CHAIN_FILE, before)
    with_chain(tmp_path, "hospital-2", lambda chain: (take(chain), extend(chain, [DEED])))
    shutil.copyfile(tmp_path / "hospital-2" / CHAIN_FILE, tmp_path / "hospital-1" / CHAIN_FILE)
    replay_all(network, Steps())
    shutil.copyfile(before, tmp_path / "hospital-2" / CHAIN_FILE)
    with pytest.raises(
        AuditError, match=r"hospital-2: its chain ends at block 8, but block 9 .* was cut back"
    ):
        replay_all(network, Steps())


def test_who_sends_through_another_node_is_not_accused(network: Network, tmp_path: Path) -> None:
    """Its own node need never have seen the deed before the block."""
    (tmp_path / "hospital-2" / "consilia.toml").write_text(settings("hospital-2", 8545, node_port=8546))
    with_chain(tmp_path, "hospital-1", lambda chain: extend(chain, [DEED]))
    said = Steps()
    replay_all(network, said)
    assert len(said.named("own deed found in another's chain")) == 1


def test_other_histories_are_found_beyond_the_newest_blocks(network: Network, tmp_path: Path) -> None:
    for name in ("hospital-1", "hospital-2"):
        with_chain(tmp_path, name, lambda chain: [extend(chain) for _ in range(FORK_BLOCKS)])
    replay_all(network, Steps())
    for name in ("hospital-1", "hospital-2"):
        with_chain(tmp_path, name, lambda chain: extend(chain))
    with pytest.raises(AuditError, match="different histories from block 9 on"):
        replay_all(network, Steps())
