"""The archive that the demo makes is enough to hide its unseen case."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.cli.demo.consulting import ASKER, write_archive
from consilia.imaging.cases import BRAIN
from consilia.imaging.readers import read_dataset
from consilia.protocols.assurance import STANDARD
from consilia.protocols.task_spec import parse_toml
from consilia.roles.diagnosis.asking import prepare_query, read_study
from consilia.roles.state import State

SPEC = """title = "demo"
[purpose]
object_of_learning = "haemorrhage, mass"
application = "CT"
[data]
categories = ["haemorrhage", "mass"]
window_center_hu = 40.0
window_width_hu = 80.0
[model]
image_size = 160
"""


@pytest.mark.slow
def test_the_demo_s_archive_hides_its_case(tmp_path: Path) -> None:
    write_archive(tmp_path, seed=0)
    archive = read_dataset(tmp_path / ASKER / "archive", window=BRAIN)
    spec = parse_toml(SPEC)
    study = next((tmp_path / ASKER / "unseen" / "images").glob("*.dcm"))
    cases = read_study(study, spec)
    assert len(archive.patients()) == len(archive.images)  # one slice a patient
    assert cases[0][0].patient not in archive.patients()
    prepared = prepare_query(cases, archive.images, spec, STANDARD, State(tmp_path / "state.sqlite"))
    assert len(prepared.images) == STANDARD.images
