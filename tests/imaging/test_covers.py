"""Audits and covers match the case, come from different patients, were never used, and give nothing away."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import ArchiveError
from consilia.imaging.cases import Acquisition, LabelledImage
from consilia.imaging.covers import diagnosis_of, draw, matched, mismatch

SCANNER = Acquisition("CT", "HEAD", "Aurora", "Axial 64", "axial", 5.0, 60.0)


def image(name, patient, labels=(), acquisition=SCANNER, width=256, height=256):
    boxes = np.tile(np.array([[1, 2, 9, 9]], np.float32), (len(labels), 1))
    return LabelledImage(
        name,
        patient,
        f"study-{patient}",
        width,
        height,
        boxes,
        np.array(labels, np.int64),
        None,
        Path(name),
        acquisition=acquisition,
    )


CASE = image("case", "the patient")


def archive(patients, slices=1, kinds=((), (1,), (2,))):
    return [
        image(f"{patient}/{number}", f"patient-{patient}", kinds[(patient + number) % len(kinds)])
        for patient in range(patients)
        for number in range(slices)
    ]


def drawn(images, cases=(CASE,), used=(), audits=20, covers=11, seed=0):
    return draw(cases, images, dict.fromkeys(used, "used before"), audits, covers, random.Random(seed))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"modality": "MR"}, "modality"),
        ({"body_part": "CHEST"}, "body part"),
        ({"model": "Axial 16"}, "scanner"),
        ({"manufacturer": "Meridian"}, "scanner"),
        ({"plane": "coronal"}, "plane"),
        ({"plane": ""}, "plane"),
        ({"slice_thickness_mm": 4.0}, ""),
        ({"slice_thickness_mm": 3.0}, "slice thickness"),
        ({"slice_thickness_mm": None}, "slice thickness"),
        ({"patient_age_years": 69.0}, ""),
        ({"patient_age_years": 71.0}, "age"),
        ({"patient_age_years": None}, ""),
    ],
    ids=str,
)
def test_what_matches(change, reason):
    other = replace(SCANNER, **change)
    assert mismatch(SCANNER, other) == mismatch(other, SCANNER) == reason


def test_files_without_headers_match_one_another_and_no_others():
    assert mismatch(Acquisition(), Acquisition()) == ""
    assert mismatch(Acquisition(), SCANNER) == "modality"


@given(seed=st.integers(0, 2**32), patients=st.integers(40, 60), slices=st.integers(1, 4))
def test_a_draw_keeps_every_rule(seed, patients, slices):
    images = [*archive(patients, slices), image("neighbour", "the patient", (1,))]
    used = {images[seed % len(images)].image_id}
    found = drawn(images, used=used, seed=seed)
    chosen = [*found.audits, *found.covers]
    assert (len(found.audits), len(found.covers)) == (20, 11)
    assert len({one.patient for one in chosen}) == 31
    assert "the patient" not in {one.patient for one in chosen}
    assert not used & {one.image_id for one in chosen}
    assert max(Counter(map(diagnosis_of, found.audits)).values()) <= 10


def test_the_draw_is_by_chance():
    images = archive(60)
    draws = [frozenset(one.image_id for one in drawn(images, seed=seed).covers) for seed in range(20)]
    assert len(set(draws)) == 20


def test_a_diagnosis_says_nothing_of_the_role():
    # were audits richer in lesions than covers, a server would guess roles from what it sees
    kinds = ((), (), (), (1,), (1,), (2,))
    audits, covers = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for seed in range(200):
        found = drawn(archive(40, kinds=kinds), seed=seed)
        audits.update(map(diagnosis_of, found.audits))
        covers.update(map(diagnosis_of, found.covers))
    for kind in set(kinds):
        assert audits[kind] / audits.total() == pytest.approx(covers[kind] / covers.total(), abs=0.06)


def test_too_small_an_archive_says_how_many_are_missing_and_which():
    images = [
        *archive(25),
        image("other", "p1", (1,), replace(SCANNER, model="Axial 16")),
        image("wide", "p2", (1,), width=512),
        image("mine", "the patient"),
    ]
    with pytest.raises(ArchiveError) as refused:
        drawn(images, used={"0/0", "1/0"})
    text = str(refused.value)
    assert "31 matched images of different patients are needed, 8 are missing" in text
    assert "CT, HEAD, Aurora Axial 64, axial, 5 mm slices (within 25%), age 60 (within 10 years)" in text
    assert "2 used before" in text and "1 scanner" in text and "1 another shape" in text
    assert "1 of the case's patient" in text


def test_many_images_of_few_patients_are_few():
    with pytest.raises(ArchiveError, match="21 are missing"):
        drawn(archive(10, slices=20))


def test_a_server_that_always_says_no_finding_must_not_pass():
    images = archive(60, kinds=((),) * 9 + ((1,),))
    with pytest.raises(
        ArchiveError, match=r"2\d of 31 archive images would be without a finding.*or more matched"
    ):
        drawn(images)


def test_real_cases_cover_one_another():
    batch = [image(f"case-{number}", f"real-{number}") for number in range(5)]
    found = drawn(archive(40), cases=batch)
    assert (len(found.audits), len(found.covers)) == (20, 7)  # 7 covers and 5 cases: 12 are never opened
    twelve = [image(f"case-{number}", f"real-{number}") for number in range(12)]
    assert drawn(archive(40), cases=twelve).covers == ()


def test_a_batch_needs_images_that_match_all_of_it():
    old, young = (
        image(name, name, acquisition=replace(SCANNER, patient_age_years=age))
        for name, age in (("old", 68), ("young", 52))
    )
    fitting, _ = matched([old, young], archive(3), {})
    assert len(fitting) == 3
    child = image("child", "child", acquisition=replace(SCANNER, patient_age_years=8))
    assert matched([old, child], archive(3), {})[1] == {"age": 3}


@pytest.mark.parametrize(("audits", "covers"), [(20, 11), (41, 22)], ids=["standard", "high"])
def test_an_archive_of_one_kind_of_finding_is_enough(audits, covers):
    # an odd number of images has no half
    for seed in range(20):
        found = drawn(archive(90, kinds=((), (1,))), audits=audits, covers=covers, seed=seed)
        assert max(Counter(map(diagnosis_of, found.audits)).values()) <= (audits + 1) // 2
