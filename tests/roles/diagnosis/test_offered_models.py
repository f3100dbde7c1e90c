"""A server offers only models that queries show what they were trained and measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.errors import SettingsError, SpecError
from consilia.roles.diagnosis.diagnoser import offered_models
from consilia.roles.state import State
from consilia.settings.sections import OfferSection
from tests.consortium import spec_toml


def offered(home: Path, spec: str | bytes, **offer: bool) -> int:
    (home / "task.toml").write_bytes(spec.encode() if isinstance(spec, str) else spec)
    (home / "weights").write_bytes(b"not read before the first query")
    section = OfferSection(model=Path("weights"), spec=Path("task.toml"), price_wei=1, bond_wei=1, **offer)
    return len(offered_models([section], home, State(home / "state"), {}))


@pytest.mark.parametrize(
    ("data", "training", "reason"),
    [
        ('format = "image"', "", "grey pictures.*may be colour"),
        ("neighbouring_slices = true", "", "one grey channel"),
        ("windows_hu = [[40, 80], [80, 200], [600, 2800]]", "", "one grey channel"),
        ("", "local_norm = true", "whole model.*normalisation layers"),
    ],
)
def test_what_a_query_cannot_show_is_not_offered(
    tmp_path: Path, data: str, training: str, reason: str
) -> None:
    spec = spec_toml(2, training=training).replace("[data]", f"[data]\n{data}")
    with pytest.raises(SettingsError, match=reason):
        offered(tmp_path, spec)


def test_a_spec_that_is_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a TaskSpec in TOML"):
        offered(tmp_path, b"\xff\xfe")


def test_grey_pictures_are_offered_where_the_server_says_that_they_are(tmp_path: Path) -> None:
    assert offered(tmp_path, spec_toml(2)) == 1
    plain = spec_toml(2).replace("[data]", '[data]\nformat = "image"')
    assert offered(tmp_path, plain, grey=True) == 1
