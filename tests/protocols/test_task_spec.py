"""TaskSpec: unknown keys are refused by path, equal specs have equal bytes, and only those bytes are read."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import PolicyError, SpecError
from consilia.protocols.policy import admit
from consilia.protocols.task_spec import MAX_SPEC_BYTES, TaskSpec, parse_bytes, parse_toml
from consilia.settings.sections import PolicySection
from tests.consortium import spec_toml

GOOD = spec_toml(4)
WINDOWS = "windows_hu = [[40, 80], [80, 200], [600, 2800]]"


def test_toml_and_canonical_bytes_tell_the_same() -> None:
    spec = parse_toml(GOOD)
    assert parse_bytes(spec.to_bytes()) == spec
    assert (
        spec.to_bytes()
        == json.dumps(
            json.loads(spec.to_bytes()), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    )
    assert parse_toml(GOOD.replace("rounds = 1", "rounds = 2")).digest != spec.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 1", "round = 1", "training.round: unknown key; the keys here are aggregation,"),
        ("[terms]", "[money]", "money: unknown key; the keys here are data,"),
        ('title = "three tensors"', "", "title: this key is missing"),
        ("rounds = 1", "rounds = 0", "training.rounds: Input should be greater than or equal to 1, got 0"),
        ("rounds = 1", 'rounds = "1"', "training.rounds: Input should be a valid integer"),
        ("rounds = 1", "rounds = 1.5", "training.rounds"),
        ("quorum = 2", "quorum = 9", "terms.quorum is larger than terms.max_hospitals"),
        ("grace_seconds = 300.0", "grace_seconds = nan", "terms.grace_seconds"),
        ("grace_seconds = 300.0", "grace_seconds = inf", "terms.grace_seconds"),
        ('categories = ["lesion"]', "categories = []", "data.categories"),
        ('categories = ["lesion"]', "categories = [1]", "data.categories.0"),
        ("rounds = 1", "rounds =", "expected a TaskSpec in TOML"),
        ("rounds = 1", 'privacy = "none"', "training.privacy"),
        ("[data]", "[data]\nwindows_hu = [[40, 80]]", "data.windows_hu: expected three windows"),
        ("[data]", "[data]\nwindows_hu = [[40, 80], [80, 0], [0, 9]]", "data.windows_hu.1.1"),
        ("[data]", f"[data]\n{WINDOWS}\nneighbouring_slices = true", "choose one"),
        ("[data]", f'[data]\n{WINDOWS}\nformat = "image"', "which plain images do not have"),
        ("[data]", '[data]\nneighbouring_slices = true\nformat = "image"', "which plain images do not have"),
        ("rounds = 1", 'augmentation = "hu"', "training.augmentation 'hu' moves Hounsfield units"),
        ("rounds = 1", "server_learning_rate = 0.1", "fedavg takes no step of its own"),
        ("rounds = 1", "server_momentum = 0.9", "fedavg takes no step of its own"),
    ],
)
def test_a_bad_spec_is_refused_by_the_path_of_its_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as refused:
        parse_toml(GOOD.replace(old, new))
    assert message in str(refused.value)


def test_a_spec_that_uses_nothing_new_has_the_digest_that_it_had_before() -> None:
    """Published digests stay: a key that came later is written only where it says something."""
    assert str(parse_toml(GOOD).digest) == "b2181488d01f1fba667c0d1aaf520380d72abeb4b7421f4a7017adcb66fa3627"
    said = parse_toml(GOOD.replace("rounds = 1", "rounds = 1\nproximal_mu = 0.0\nlocal_norm = false"))
    assert said.digest == parse_toml(GOOD).digest
    spelt_out = parse_toml(GOOD).to_bytes().replace(b'"privacy"', b'"local_norm":false,"privacy"')
    with pytest.raises(SpecError, match="canonical form"):
        parse_bytes(spelt_out)


def test_every_new_key_is_read_back_as_it_was_written() -> None:
    text = GOOD.replace("[data]", f"[data]\n{WINDOWS}\nlaterality_matters = true").replace(
        "rounds = 1",
        'aggregation = "fedadam"\nserver_learning_rate = 0.05\nserver_momentum = 0.5\nproximal_mu = 0.01\n'
        'local_norm = true\naugmentation = "hu"\nnegatives_per_positive = 2.0\nema_decay = 0.9',
    )
    spec = parse_toml(text)
    assert parse_bytes(spec.to_bytes()) == spec
    assert spec.data.windows == ((40, 80), (80, 200), (600, 2800))
    for key in (
        b"windows_hu",
        b"laterality_matters",
        b"server_learning_rate",
        b"server_momentum",
        b"proximal_mu",
    ):
        assert key in spec.to_bytes()


def test_a_spec_longer_than_the_contract_takes_is_refused() -> None:
    categories = ", ".join(f'"{"x" * 36}{n}"' for n in range(250))
    spec = parse_toml(GOOD.replace('["lesion"]', f"[{categories}]"))
    with pytest.raises(SpecError, match=str(MAX_SPEC_BYTES)):
        spec.to_bytes()


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_to_be_refused(data: bytes) -> None:
    with pytest.raises(SpecError):
        parse_bytes(data)


@given(st.data())
def test_any_other_spelling_is_refused(data: st.DataObject) -> None:
    good = parse_toml(GOOD).to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.sampled_from([b" ", b"\n", b"0", b'"', b"\\u0061"])) + good[at:]
    with suppress(SpecError):
        assert parse_bytes(changed).to_bytes() == changed  # it is another spec, in its own canonical form


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"applications": ("MR",)}, "purpose.application is 'CT', the policy admits MR"),
        ({"purposes": ()}, "purpose.purpose is 'research', the policy admits nothing"),
        ({"detectors": ("retinanet",)}, "model.detector is 'faster-rcnn'"),
        ({"privacy": ()}, "training.privacy is 'transparent'"),
        ({"minimum_quorum": 3}, "terms.quorum is 2, the policy wants at least 3"),
        ({"minimum_reward_wei": 10**19}, "terms.reward_wei"),
    ],
)
def test_the_policy_says_all_that_speaks_against_a_task(change: dict[str, object], objection: str) -> None:
    spec = parse_toml(GOOD)
    admit(spec, PolicySection())
    with pytest.raises(PolicyError) as refused:
        admit(spec, PolicySection(**change))
    assert objection in str(refused.value)
    worst = PolicySection(applications=(), detectors=(), minimum_quorum=9)
    with pytest.raises(PolicyError, match=r"application.*detector.*quorum"):
        admit(spec, worst)


def test_a_policy_left_out_admits_ct_research_between_two() -> None:
    admit(TaskSpec.model_validate(parse_toml(GOOD).model_dump()), PolicySection())


def test_a_file_is_read_as_its_text_and_one_that_is_no_text_is_refused() -> None:
    assert parse_toml(GOOD.replace("\n", "\r\n").encode()) == parse_toml(GOOD)
    with pytest.raises(SpecError, match="expected a TaskSpec in TOML"):
        parse_toml(b"\xff\xfe" + GOOD.encode("utf-16-le"))
