"""The audit knows what was put up for exchange and asked about: what is gone is told, with whose it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from consilia.errors import StoreUnreachableError
from consilia.roles.audit.export import export
from consilia.roles.audit.export_check import check_export, unpack
from consilia.roles.audit.home import audit
from consilia.roles.audit.registered import check_objects, registered_objects
from consilia.store.directory import DirectoryStore
from consilia.values import Digest
from tests.cli.running import Cli
from tests.consortium import Consortium, Steps, consortium
from tests.roles.asking import Clinic
from tests.roles.trading import Trade


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """Two hospitals and a server; nobody trains."""
    with consortium(tmp_path, monkeypatch, 2) as made:
        yield made


def test_what_is_on_offer_or_asked_about_is_in_the_export_and_missed_when_it_is_gone(
    town: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(town, monkeypatch, capsys)
    root = Trade(town).register()
    clinic = Clinic(town)
    query_id = clinic.ask()
    clinic.server.advance()
    query = clinic.query(query_id)
    assert query.reports_root is not None
    file = town.home / "run.zip"
    export(town.home, file)
    roots = json.loads(unpack(file.read_bytes())["roots.json"])
    assert [(item["root"], item["owner"], item["needed"]) for item in roots] == [
        (f"0x{root.hex()}", town.addresses[0], False),
        (f"0x{query.root.hex()}", town.addresses[0], False),
        (f"0x{query.reports_root.hex()}", town.server_address, False),
    ]
    assert all(
        item["size"] == town.object_path(Digest.from_hex(item["root"])).stat().st_size for item in roots
    )
    last = cli("audit", "verify", str(file), "--store", str(town.home / "store"), home=None)[-1]
    assert (last["step"], last["objects"], last["objects_not_in_order"]) == ("all in order", 3, 0)

    town.object_path(root).unlink()
    said = cli("audit", "verify", home=".")
    (missed,) = [line for line in said if line["step"] == "object not in order"]
    assert missed["owner"] == town.addresses[0] and str(root) in missed["reason"]
    assert said[-1]["step"] != "all in order"
    assert (said[-1]["objects"], said[-1]["objects_not_in_order"]) == (2, 1)
    steps = Steps()
    result = check_export(file, steps, town.home / "store")
    assert (result.objects, result.objects_not_in_order) == (2, 1)
    assert len(steps.named("object not in order")) == 1
    assert audit(town.home, steps).objects_not_in_order == 1


class _Away(DirectoryStore):
    @contextmanager
    def reader(self, root: Digest) -> Iterator[BinaryIO]:
        raise StoreUnreachableError("nobody answers")
        yield


def test_a_store_that_is_away_has_lost_nothing(town: Consortium) -> None:
    Trade(town).register()
    objects = registered_objects(town.hospitals[0].ledger.events())
    with pytest.raises(StoreUnreachableError):
        check_objects(_Away(town.home / "store"), objects, Steps())
