"""Splits: every patient on one side, the same for the same seed, and what the data set proposes is kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilia.errors import DatasetError
from consilia.imaging.cases import Dataset, LabelledImage, Skipped, WindowHU
from consilia.imaging.split import check_no_leak, check_no_shared_pixels, split_by_patient
from tests.imaging.image_files import ct_file


def image(number: int, patient: str, hospital: str = "", official_split: str = "") -> LabelledImage:
    return LabelledImage(
        image_id=f"{number}.png",
        patient=patient,
        study=f"study of {patient}",
        width=8,
        height=8,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        spacing_mm=None,
        path=Path(f"{number}.png"),
        hospital=hospital,
        official_split=official_split,
    )


def dataset(*images: LabelledImage) -> Dataset:
    return Dataset("set", ("lesion",), images)


def of_patients(patients: list[int]) -> Dataset:
    return dataset(*(image(i, f"p{patient}") for i, patient in enumerate(patients)))


def ids(part: Dataset) -> set[str]:
    return {image.image_id for image in part.images}


@given(
    patients=st.lists(st.integers(0, 20), min_size=1, max_size=80),
    hospitals=st.integers(1, 6),
    seed=st.integers(0, 1000),
    fraction=st.floats(0.05, 0.6),
)
def test_no_patient_is_ever_on_two_sides_and_no_image_is_lost(
    patients: list[int], hospitals: int, seed: int, fraction: float
) -> None:
    whole = of_patients(patients)
    try:
        parts, held_out = split_by_patient(whole, hospitals, seed, fraction)
    except DatasetError as error:
        assert "patient or more for each" in str(error)
        assert len(set(patients)) - max(1, round(fraction * len(set(patients)))) < hospitals
        return
    sides = [*parts, held_out]
    assert len(parts) == hospitals
    assert all(len(side) > 0 for side in sides)
    assert sum(len(side.patients()) for side in sides) == len(whole.patients())
    assert set().union(*map(ids, sides)) == ids(whole)
    assert sum(map(len, sides)) == len(whole)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    whole = of_patients([i // 3 for i in range(120)])
    first, again, other = (split_by_patient(whole, 4, seed) for seed in (1, 1, 2))
    assert [ids(part) for part in first[0]] == [ids(part) for part in again[0]]
    assert ids(first[1]) == ids(again[1]) != ids(other[1])


def test_shares_are_even_in_images() -> None:
    parts, held_out = split_by_patient(of_patients([i // 3 for i in range(150)]), 4, 0)
    assert len(held_out.patients()) == 10
    assert max(map(len, parts)) - min(map(len, parts)) <= 3


def test_the_official_test_images_are_held_out_and_only_they() -> None:
    images = [image(i, f"p{i}", official_split=("train", "val", "test")[i % 3]) for i in range(30)]
    parts, held_out = split_by_patient(dataset(*images), 2, 0)
    assert ids(held_out) == {f"{i}.png" for i in range(2, 30, 3)}
    assert sum(map(len, parts)) == 20


def test_an_official_split_through_a_patient_is_a_leak() -> None:
    images = [image(i, f"p{i}") for i in range(5)]
    leak = [image(5, "p0", official_split="test"), image(6, "p0", official_split="train")]
    with pytest.raises(DatasetError, match="one is in test and in training"):
        split_by_patient(dataset(*images, *leak), 2, 0)


def proposed(sizes: dict[str, int]) -> Dataset:
    images, number = [], 0
    for hospital, count in sizes.items():
        for _ in range(count):
            images.append(image(number, f"p{number}", hospital=hospital))
            number += 1
    return dataset(*images)


def test_proposed_hospitals_are_kept_and_each_is_tested_on() -> None:
    whole = proposed({"a": 10, "b": 20, "c": 30})
    parts, held_out = split_by_patient(whole, 3, 0)
    assert [{image.hospital for image in part.images} for part in parts] == [{"a"}, {"b"}, {"c"}]
    assert {image.hospital for image in held_out.images} == {"a", "b", "c"}
    assert len(held_out) == 12


def test_the_smallest_proposed_hospitals_are_joined() -> None:
    parts, _ = split_by_patient(proposed({"a": 10, "b": 40, "c": 5, "d": 30}), 3, 0)
    assert [sorted({image.hospital for image in part.images}) for part in parts] == [["b"], ["d"], ["a", "c"]]


def test_more_hospitals_than_proposed_are_an_error() -> None:
    with pytest.raises(DatasetError, match=r"at most the 2 hospitals of hospitals\.json, 3 were wanted"):
        split_by_patient(proposed({"a": 10, "b": 10}), 3, 0)


def test_a_patient_of_two_proposed_hospitals_is_a_leak() -> None:
    with pytest.raises(DatasetError, match="one is in several"):
        split_by_patient(dataset(image(0, "p", "a"), image(1, "p", "b"), image(2, "q", "b")), 2, 0)


def test_images_without_a_proposed_hospital_are_an_error() -> None:
    with pytest.raises(DatasetError, match="1 patients have no hospital"):
        split_by_patient(dataset(image(0, "p", "a"), image(1, "q")), 1, 0)


@pytest.mark.parametrize(("hospitals", "fraction"), [(0, 0.2), (2, 0.0), (2, 1.0)])
def test_senseless_wishes_are_an_error(hospitals: int, fraction: float) -> None:
    with pytest.raises(DatasetError, match="expected 1 hospital or more"):
        split_by_patient(of_patients([1, 2, 3]), hospitals, 0, fraction)


def test_check_no_leak_finds_a_shared_patient() -> None:
    one, two = of_patients([1, 2]), replace(of_patients([2, 3]), name="other")
    with pytest.raises(DatasetError, match="set and other share one"):
        check_no_leak([one, two])
    check_no_leak([one, replace(of_patients([3]), name="other")])


def test_equal_names_of_images_without_a_patient_are_no_leak() -> None:
    def unknown(name: str) -> Dataset:
        nobody = replace(image(1, "image:1.png"), patient_known=False)
        return Dataset(name, ("lesion",), (nobody,))

    check_no_leak([unknown("here"), unknown("there")])


def test_a_subset_keeps_what_was_skipped_of_its_patients() -> None:
    whole = replace(
        of_patients([1, 2]), skipped=(Skipped("x", "bad", "p1", "s"), Skipped("y", "bad", "p2", "s"))
    )
    part = whole.subset(["p1"], name="mine")
    assert (part.name, ids(part)) == ("mine", {"0.png"})
    assert [skipped.name for skipped in part.skipped] == ["x"]
    with pytest.raises(DatasetError, match="1 of 2 are not in it"):
        whole.subset(["p1", "nobody"])


def drawn(folder: Path, name: str, pixels: np.ndarray, patient: str) -> LabelledImage:
    Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return replace(image(0, patient), image_id=name, path=folder / name)


def test_the_same_picture_under_two_names_and_patients_is_a_leak(tmp_path: Path) -> None:
    picture = np.arange(64).reshape(8, 8)
    train = dataset(drawn(tmp_path, "a.png", picture, "p1"))
    test = replace(dataset(drawn(tmp_path, "b.png", picture, "p2")), name="held-out")
    check_no_leak([train, test])  # by their names they are two patients
    with pytest.raises(DatasetError, match="1 of held-out have the same pixels as pictures of set") as error:
        check_no_shared_pixels([train, test])
    assert ".png" not in str(error.value)  # a file's name can be a patient's


def test_slices_that_only_look_alike_in_their_window_are_no_leak(tmp_path: Path) -> None:
    paths = [
        ct_file(tmp_path / name, RescaleIntercept=intercept)
        for name, intercept in (("a", -1024), ("b", -1023))
    ]
    far = WindowHU(9000.0, 10.0)
    one, two = (
        dataset(replace(image(number, f"p{number}"), path=path, window=far))
        for number, path in enumerate(paths)
    )
    assert np.array_equal(one.images[0].pixels(), two.images[0].pixels())
    check_no_shared_pixels([one, replace(two, name="held-out")])
    shutil.copy(paths[0], paths[1])
    with pytest.raises(DatasetError, match="same pixels"):
        check_no_shared_pixels([one, replace(two, name="held-out")])


def test_other_pixels_and_empty_pictures_are_no_leak(tmp_path: Path) -> None:
    empty, picture = np.zeros((8, 8)), np.arange(64).reshape(8, 8)
    train = dataset(drawn(tmp_path, "a.png", picture, "p1"), drawn(tmp_path, "c.png", empty, "p1"))
    other = drawn(tmp_path, "b.png", picture + 1, "p2"), drawn(tmp_path, "d.png", empty, "p2")
    check_no_shared_pixels([train, replace(dataset(*other), name="held-out")])
    check_no_shared_pixels([dataset(*train.images, *train.images)])  # twice on one side is no leak
