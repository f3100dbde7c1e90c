"""Rules beyond the average, through real roles: derived again by the audit, the same after kill -9, forgery found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from consilia.errors import AuditError, SpecError
from consilia.federation.aggregate import WeightedUpdate
from consilia.federation.rules import AggregationRule, moments_beside, next_global_model
from consilia.federation.tensors import TensorFile
from consilia.protocols.task_spec import parse_toml
from consilia.roles.audit.home import audit
from consilia.roles.training.rounds import rule_of
from consilia.values import Digest
from tests.consortium import SHAPES, Consortium, Steps, newest, read_weights, spec_toml, write_first_model
from tests.roles.audit.test_audit_in_process import one_byte_better

RULES = {
    "fedavgm": 'aggregation = "fedavgm"\nserver_learning_rate = 0.5',
    "fedadam": 'aggregation = "fedadam"',
    "fedbn": "local_norm = true",
    "fedadam, fedbn": 'aggregation = "fedadam"\nlocal_norm = true',
}


def quiet(step: str, **facts: object) -> None:
    """Report to nobody."""


def test_a_rule_without_numbers_takes_its_own() -> None:
    rules = {name: rule_of(parse_toml(spec_toml(3, training=RULES[name]))) for name in RULES}
    assert rules["fedavgm"] == AggregationRule("fedavgm", 0.5, 0.5)
    assert rules["fedadam"] == AggregationRule("fedadam", 0.003, 0.9)
    assert rules["fedbn"] == AggregationRule("fedavg", 1.0, 0.0, local_norm=True)
    assert rule_of(parse_toml(spec_toml(3))).is_plain_average


def keep_scale_at_home(three: Consortium) -> None:
    for trainer in three.trainers:
        trainer.spoil = lambda weights: weights.pop("scale") and None


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_derived_again_and_one_changed_byte_is_found(
    three: Consortium, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The server is honest in two rounds, and changes one byte of what it aggregated in the third."""

    def at_last_dishonest(
        rule: AggregationRule, updates: Sequence[WeightedUpdate], model: Path, out: Path, *, first: bool
    ) -> Digest:
        make = one_byte_better if out.name == "round-003.safetensors" else next_global_model
        return make(rule, updates, model, out, first=first)

    monkeypatch.setattr("consilia.roles.server.next_global_model", at_last_dishonest)
    if "local_norm" in RULES[name]:
        keep_scale_at_home(three)
    three.start_server(rounds=3, training=RULES[name])
    three.finish()
    models = sorted((three.home / "server" / "models").glob("*/round-00[0-2].safetensors"))
    assert len({path.read_bytes() for path in models}) == 3
    if "local_norm" in RULES[name]:
        assert all(read_weights(path)["scale"] == np.float32(0.5) for path in models)
    said = Steps()
    with pytest.raises(AuditError, match=r"round 2: the model derived from the updates has digest"):
        audit(three.home, said)
    assert len(said.named("model derived again")) == 2


def test_a_server_that_forges_its_moments_is_found(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moments are registered nowhere: all that binds them is that they follow from the updates of all rounds."""

    def forgetful(
        rule: AggregationRule, updates: Sequence[WeightedUpdate], model: Path, out: Path, *, first: bool
    ) -> Digest:
        return next_global_model(rule, updates, model, out, first=True)

    monkeypatch.setattr("consilia.roles.server.next_global_model", forgetful)
    three.start_server(rounds=2, training=RULES["fedavgm"])
    three.finish()
    said = Steps()
    with pytest.raises(AuditError, match=r"round 1: the model derived from the updates has digest"):
        audit(three.home, said)
    assert len(said.named("model derived again")) == 1


@pytest.mark.parametrize("killed", ["before the moments", "before the model"])
def test_the_moments_survive_kill_9(three: Consortium, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """Killed anywhere in the aggregation of round 1, the server makes of round 0's moments what it would have made."""
    three.start_server(rounds=3, training=RULES["fedadam"])
    three.enrol(0, 1, 2)
    three.train(0)
    three.until(lambda tasks: len(newest(tasks).rounds) > 1)

    class Killed(BaseException):
        """No handler stops it."""

    def die(*arguments: object, **named: object) -> Digest:
        rule, updates, model, out = arguments
        if killed == "before the model":
            next_global_model(rule, updates, model, out, first=False)
            Path(str(out)).unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("consilia.roles.server.next_global_model", die)
        three.step()
        assert three.thread is not None
        with pytest.raises(Killed):
            three.thread.result()
    three.server = three.new_server()
    three.start_server(rounds=3, training=RULES["fedadam"])
    task = three.finish()
    assert [bool(current.closed) for current in task.rounds] == [True] * 3
    assert audit(three.home, quiet).models_rederived == 3
    last = next((three.home / "server" / "models").glob("*/round-003.safetensors"))
    with TensorFile(moments_beside(last)) as moments:
        assert set(moments.tensors) == {f"{kind}/{name}" for kind in ("first", "second") for name in SHAPES}


def test_an_update_with_what_should_stay_at_home_is_rejected(three: Consortium) -> None:
    keep_scale_at_home(three)
    three.trainers[2].spoil = lambda weights: None
    three.start_server(rounds=1, training=RULES["fedbn"])
    three.finish()
    [rejected] = three.server_said("update rejected")
    assert rejected["hospital"] == three.addresses[2]
    assert "scale: the task's model has no such tensor" in rejected["reason"]
    assert audit(three.home, quiet).models_rederived == 1


def test_a_model_and_a_spec_that_disagree_on_what_stays_at_home_are_not_published(three: Consortium) -> None:
    keeps = parse_toml(spec_toml(3, training=RULES["fedbn"]))
    shares = parse_toml(spec_toml(3))
    with pytest.raises(SpecError, match="local_norm"):
        three.server.run_task(keeps, lambda spec, path: write_first_model(shares, path))
    with pytest.raises(SpecError, match="local_norm"):
        three.server.run_task(shares, lambda spec, path: write_first_model(keeps, path))
