"""Where w_0 comes from: pretrained weights only where the TaskSpec names them, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from consilia.errors import SpecError
from consilia.protocols.task_spec import TaskSpec, parse_bytes, parse_toml
from consilia.roles.training.initial_model import InitialModelFiles
from consilia.roles.training.local_training import detector_of
from consilia.values import Digest
from tests.consortium import Consortium, spec_toml


def spec_with(pretrained_digest: str = "", training: str = "", hospitals: int = 2) -> TaskSpec:
    named = f'image_size = 64\npretrained_digest = "{pretrained_digest}"'
    return parse_toml(spec_toml(hospitals, training=training).replace("image_size = 64", named))


@pytest.fixture
def learnt(tmp_path: Path) -> tuple[Path, str]:
    """The file of a detector that has learnt something, and its SHA-256."""
    state = detector_of(spec_with()).state_dict()
    data = save({name: torch.full_like(tensor, 0.25) for name, tensor in state.items()})
    (tmp_path / "learnt").write_bytes(data)
    return tmp_path / "learnt", str(Digest.of(data))


def test_the_weights_that_the_spec_names_are_in_the_first_model(learnt, tmp_path):
    file, digest = learnt
    told: list[tuple[str, dict[str, object]]] = []
    files = InitialModelFiles(pretrained=file, report=lambda step, **facts: told.append((step, facts)))
    for name, training in (("w0", ""), ("again", ""), ("keeps", "local_norm = true")):
        files.write(spec_with(digest, training), tmp_path / name)
        tensors = load_file(tmp_path / name)
        assert all((tensor == 0.25).all() for tensor in tensors.values())
    assert (tmp_path / "w0").read_bytes() == (tmp_path / "again").read_bytes()
    assert told[0] == ("pretrained weights", {"taken": len(tensors), "drawn": 0})


def test_other_weights_than_the_spec_names_are_refused(learnt, tmp_path):
    file, digest = learnt
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    refusals = {
        "expected .*, got a file with": (InitialModelFiles(pretrained=tmp_path / "changed"), digest),
        "taken only if the TaskSpec names them": (InitialModelFiles(pretrained=file), ""),
        f"expected the file with SHA-256 {digest}.*--pretrained": (InitialModelFiles(), digest),
        "a whole initial model": (InitialModelFiles(whole=file, pretrained=file), digest),
    }
    for message, (files, asked) in refusals.items():
        with pytest.raises(SpecError, match=rf"model\.pretrained_digest: .*{message}"):
            files.write(spec_with(asked), tmp_path / "w0")
    assert not (tmp_path / "w0").exists()


def test_an_old_spec_keeps_its_bytes_and_a_new_one_its_weights():
    plain = spec_with()
    assert b"pretrained" not in plain.to_bytes()
    assert plain.digest == parse_toml(spec_toml(2)).digest
    named = spec_with("ab" * 32)
    assert parse_bytes(named.to_bytes()) == named and named.digest != plain.digest
    with pytest.raises(SpecError, match=r"model\.pretrained_digest"):
        spec_with("ab")


def test_the_ledger_names_the_file_and_the_first_model(learnt, three: Consortium):
    file, digest = learnt
    spec = spec_with(digest, hospitals=3)
    with pytest.raises(SpecError, match="nothing is downloaded"):
        three.server.run_task(spec, InitialModelFiles().write)
    assert not three.tasks()
    three.server._publish(spec, InitialModelFiles(pretrained=file).write)
    task = three.until(lambda tasks: tasks)
    first = next((three.home / "server" / "models").glob("*/round-000.safetensors"))
    assert task.spec.model.pretrained_digest == digest
    assert task.spec.model.initial_digest == str(Digest.of(first.read_bytes()))
    assert all((tensor == 0.25).all() for tensor in load_file(first).values())
    three.server._publish(spec, InitialModelFiles().write)  # as after kill -9: w_0 is there
    assert len(three.tasks()) == 1
