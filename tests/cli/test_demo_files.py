"""What `consilia demo` writes into its home, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.cli.demo.data import Shares
from consilia.cli.demo.layout import HospitalData, write_hospital
from consilia.cli.demo.plan import Plan, settle_plan
from consilia.cli.demo.run import task_toml
from consilia.errors import HomeError
from consilia.protocols.task_spec import parse_toml
from consilia.settings import HospitalSettings, load

PLAN = Plan(
    hospitals=2,
    rounds=1,
    local_epochs=1.0,
    image_size=64,
    learning_rate=0.1,
    batch_size=1,
    detector="yolo",
    seed=0,
    data=None,
    application='"MR"',
    phantom_patients=1,
)


def test_categories_and_paths_have_whatever_characters(tmp_path: Path) -> None:
    names = ('a "bleed"', "back\\slash")
    spec = parse_toml(task_toml(PLAN, Shares((), (), names, "image", None, (), (0, 0, 0))))
    assert spec.data.categories == names and spec.purpose.application == '"MR"'
    assert [finding.category for finding in spec.code_book.findings] == list(names)
    (tmp_path / "hospital-1").mkdir()
    folder = tmp_path / 'of "one"'
    write_hospital(tmp_path, 1, (7001, 7002), HospitalData(folder, folder / "own\\patients"))
    data = load(HospitalSettings, tmp_path / "hospital-1").data
    assert (data.path, data.patients) == (folder, folder / "own\\patients")


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_bytes(b"\xff\xfe")
    with pytest.raises(HomeError, match=r"demo\.json of .* is damaged"):
        settle_plan(tmp_path, PLAN)
