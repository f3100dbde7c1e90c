"""FedBN: a global model has no normalisation layers of its own; used without a hospital's it would find nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilia.cli import app
from consilia.cli.model_record import model_record
from consilia.errors import InputError
from consilia.imaging.cases import Dataset
from consilia.roles.artifacts import file_digest
from consilia.roles.models.catalogue import NamedModel
from consilia.roles.models.use import HeldOut, ModelName, find_on, named_model
from consilia.roles.training.local_training import own_norm_in
from tests.consortium import Consortium


def name(home: Path, rounds_done: int | None = None) -> NamedModel:
    with named_model(ModelName(home, 1, rounds_done)) as model:
        return model


def test_a_global_model_is_used_with_a_hospitals_own_layers_or_not_at_all(
    three: Consortium, tmp_path: Path
) -> None:
    for trainer in three.trainers:
        trainer.spoil = lambda weights: weights.pop("scale") and None
    three.start_server(rounds=2, training="local_norm = true")
    three.finish()
    server, hospital = three.home / "server", three.home / "hospital-1"
    spec = next(iter(three.server.tasks().values())).spec
    (newest,) = server.glob("models/*/round-002.safetensors")

    lacking: list[Callable[[], object]] = [
        lambda: name(server),
        lambda: name(server, 1),
        lambda: name(hospital),  # it did not train, or its home was restored without them
        lambda: NamedModel(newest, file_digest(newest), spec, None).require_whole(),
    ]
    for use in lacking:
        with pytest.raises(InputError, match="that trained in this task: with"):
            use()
    own_norm = own_norm_in(hospital, spec)
    own_norm.parent.mkdir()
    own_norm.write_bytes(b"the layers after round 2")

    model = name(hospital)
    assert model.own_norm == own_norm and name(hospital, 2).digest == model.digest
    assert model_record(model)["own_norm"] == str(file_digest(own_norm))
    with pytest.raises(InputError, match="expected the newest round, or 0"):
        name(hospital, 1)
    nothing = HeldOut(Dataset("none", ("lesion",), ()), (), ())
    with pytest.raises(InputError, match="that trained in this task"):  # `compare --other FILE`
        find_on(replace(model, path=newest, registered=None), nothing)
    for home in (server, hospital):  # w_0 has the layers that it was drawn with
        assert name(home, 0).own_norm is None

    figures = {"map50": 0.5, "map": 0.2, "cpm": 0.6, "patients": 1, "images": 1, "lesions": 1}
    measured, command = tmp_path / "measured.json", ["model", "card", "--home", str(three.home)]
    command += ["--measured", str(measured)]
    measured.write_text(json.dumps({"model": model_record(model) | {"own_norm": None}, **figures}))
    assert "own normalisation layers" in str(CliRunner().invoke(app, command).exception)
    measured.write_text(json.dumps({"model": model_record(model), **figures}))
    card = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert f"one hospital's own normalisation layers, `{file_digest(own_norm)}`" in card
    assert "this file alone is no whole detector" in card
