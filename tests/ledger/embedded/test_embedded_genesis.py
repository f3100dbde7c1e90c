"""The genesis: canonical, strict, and covering all that nodes must agree on."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from consilia.errors import HomeError, SettingsError
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.genesis_block import genesis_block
from tests.ledger.embedded.members import KEYS, OUTSIDER, genesis


def test_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = genesis()
    made.save(tmp_path / "genesis.json")
    assert Genesis.load(tmp_path / "genesis.json") == made
    assert Genesis.load(tmp_path / "genesis.json").digest() == made.digest()


def test_unknown_keys_and_bad_addresses_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "genesis.json"
    path.write_text(json.dumps(genesis().model_dump(mode="json") | {"block_tme_ms": 5}))
    with pytest.raises(SettingsError, match="block_tme_ms"):
        Genesis.load(path)
    with pytest.raises(ValidationError, match="40 hex digits"):
        genesis(miners=("0x12",))
    with pytest.raises(ValidationError, match="distinct"):
        genesis(miners=(KEYS[0].address, KEYS[0].address))
    with pytest.raises(SettingsError, match="expected a Genesis file"):
        Genesis.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"miners": (*(key.address for key in KEYS), OUTSIDER.address)},
        {"block_reward_wei": 1},
        {"block_time_ms": 201},
        {"balances_wei": {}},
        {"chain_id": 1},
    ],
)
def test_any_difference_makes_another_chain(tmp_path: Path, change: dict[str, object]) -> None:
    made = genesis()
    other = made.model_copy(update=change)
    assert genesis_block(other)[0].header.hash != genesis_block(made)[0].header.hash
    Chain(tmp_path / "chain.sqlite", made).close()
    with pytest.raises(HomeError, match="another genesis"):
        Chain(tmp_path / "chain.sqlite", other)


def test_a_node_listens_and_dials_on_loopback_unless_the_risk_is_taken(tmp_path: Path) -> None:
    good = {"home": tmp_path, "genesis": tmp_path / "g.json", "coinbase": KEYS[0].address, "port": 1}
    NodeSettings(**good, peers=("http://127.0.0.1:2",))
    elsewhere = {"host": "192.168.0.7", "peers": ("http://192.168.0.8:8545",)}
    with pytest.raises(ValidationError, match=r"risks in docs/ledger\.md before you set beyond_this_machine"):
        NodeSettings(**good, host="192.168.0.7")
    with pytest.raises(ValidationError, match=r"risks in docs/ledger\.md before you set beyond_this_machine"):
        NodeSettings(**good, peers=elsewhere["peers"])
    assert not NodeSettings(**good, **elsewhere, beyond_this_machine=True).is_local
    with pytest.raises(ValidationError, match="one address of this machine"):
        NodeSettings(**good, host="0.0.0.0", beyond_this_machine=True)
    for url in ("ftp://127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/path"):
        with pytest.raises(ValidationError, match="http://ADDRESS:PORT"):
            NodeSettings(**good, peers=(url,))
