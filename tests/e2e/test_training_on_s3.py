"""The whole training by separate processes on a real S3 server, which goes away for a while; then its upkeep."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import obstore
import pytest

from consilia.ledger.events import RoundClosed, UpdateRegistered
from tests.ceph import S3Server
from tests.e2e.running import RunningConsortium, audit, consilia
from tests.faulty_wire import FaultyWire

pytestmark = [pytest.mark.network, pytest.mark.slow]


def said(done, step: str) -> dict:
    """The last report of a step."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line for line in lines if line["step"] == step][-1]


def test_training_on_a_real_s3_server(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    with FaultyWire(s3_server.endpoint) as wire:
        section = s3_server.section(tmp_path, bucket, patience_seconds=120, endpoint=wire.url)
        with RunningConsortium(tmp_path, hospitals=3, rounds=3, store=section) as town:
            town.start()
            # the store vanishes in the middle of a round and comes back: everybody waits, nobody is blamed
            town.parties["server"].wait_for("update opened")
            wire.refuse = True
            wire.hang_up()
            threading.Timer(4.0, wire.mend).start()
            # a hospital is killed meanwhile
            town.parties["hospital-2"].kill()
            town.start_hospital("hospital-2")
            town.finish_work()
            events = town.ledger(town.ports[0]).events()
            closed = [event for event in events if isinstance(event, RoundClosed)]
            updates = [event for event in events if isinstance(event, UpdateRegistered)]
            assert len(closed) == 3 and len(updates) == 9
            assert [sum(word.bit_count() for word in event.included) for event in closed] == [3, 3, 3]
            check_upkeep(town, s3_server, bucket, closed[1])
        done = audit(tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["models_rederived"] == 3
        assert not (tmp_path / "store").exists()


def check_upkeep(town: RunningConsortium, server: S3Server, bucket: str, closed: RoundClosed) -> None:
    """status, fsck, copy out, damage, fsck again, copy back; gc leaves all that the ledger names."""
    home = str(town.home / "hospital-1")
    assert said(consilia("store", "status", "--home", home), "status")["objects"] > 12
    done = consilia("store", "fsck", "--home", home)
    assert done.returncode == 0, done.stderr
    good = said(done, "checked")["good"]
    (town.home / "folder.toml").write_text('[store]\npath = "copied"\n')
    folder = str(town.home / "folder.toml")
    done = consilia("store", "copy", "--home", home, "--to", folder)
    assert done.returncode == 0 and said(done, "copied")["objects"] >= good

    damage_a_part(server, bucket, town, closed)
    done = consilia("store", "fsck", "--home", home, "--remove-damaged")
    assert done.returncode == 5 and "1 of" in done.stderr
    assert said(done, "damaged")["root"] == str(closed.model_root)
    assert said(consilia("store", "fsck", "--home", home), "missing")["root"] == str(closed.model_root)
    done = consilia("store", "copy", "--home", home, "--from", folder)
    assert done.returncode == 0 and said(done, "copied")["objects"] == 1
    assert consilia("store", "fsck", "--home", home).returncode == 0

    done = consilia("store", "gc", "--home", home, "--older-than-hours", "0")
    assert done.returncode == 4 and "on its way" not in done.stdout
    done = consilia("store", "gc", "--home", home, "--older-than-hours", "1", "--delete")
    assert done.returncode == 0 and said(done, "deleted")["objects"] == 0


def damage_a_part(server: S3Server, bucket: str, town: RunningConsortium, closed: RoundClosed) -> None:
    bare = server.objects(bucket)
    root = closed.model_root.hex()
    index = bytes(obstore.get(bare, f"consortium/objects/{root[:2]}/{root}").bytes())
    folder = f"consortium/parts/{index[8:40].hex()}"
    [part] = [entry["path"] for page in obstore.list(bare, folder) for entry in page]
    data = bytearray(obstore.get(bare, part).bytes())
    data[len(data) // 2] ^= 1
    obstore.put(bare, part, bytes(data))
