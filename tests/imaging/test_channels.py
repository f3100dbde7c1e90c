"""Three windows, or three slices, as the channels of one CT slice; what is no CT is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilia.errors import DatasetError
from consilia.imaging.cases import BRAIN, LUNG, SOFT_TISSUE, Dataset
from consilia.imaging.channels import with_neighbours, with_windows
from consilia.imaging.dicom import read_ct
from consilia.imaging.readers import read_dicom
from tests.imaging.ct_files import ct


def series(folder: Path, levels_mm: list[float], uid: str, value: int) -> None:
    folder.mkdir(exist_ok=True)
    for number, level_mm in enumerate(levels_mm):
        ct(
            folder / f"{uid}-{number}.dcm",
            np.full((16, 16), 1000 + value + number, np.uint16),
            SOPInstanceUID=f"1.2.3.{uid}.{number}",
            SeriesInstanceUID=f"1.2.3.{uid}",
            ImagePositionPatient=[0, 0, level_mm],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    series(tmp_path / "ct", [10, 0, 5, 60], "7", 0)  # not in order, and one slice far from the others
    series(tmp_path / "ct", [3, 4], "8", 40)
    return read_dicom(tmp_path / "ct", window=BRAIN)


def test_each_window_is_a_channel(dataset: Dataset) -> None:
    windows = (BRAIN, SOFT_TISSUE, LUNG)
    image = with_windows(dataset, windows).images[0]
    hu = read_ct(image.path).hu
    pixels = image.pixels()
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    for channel, window in enumerate(windows):
        assert np.array_equal(pixels[..., channel], window.to_uint8(hu))
    assert len({int(value) for value in pixels[0, 0]}) > 1, "the windows must differ here to prove anything"


def test_neighbours_are_of_the_same_series_in_order_of_level_and_near(dataset: Dataset) -> None:
    images = with_neighbours(dataset).images
    assert [image.image_id for image in images] == [image.image_id for image in dataset.images]
    beside = {
        image.path.stem: tuple(path.stem for path in image.neighbours) for image in images if image.neighbours
    }
    assert beside == {
        "7-1": ("7-1", "7-2"),  # the lowest has nothing below
        "7-2": ("7-1", "7-0"),
        "7-0": ("7-2", "7-0"),  # the next one up is 50 mm away
        "7-3": ("7-3", "7-3"),
        "8-0": ("8-0", "8-1"),
        "8-1": ("8-0", "8-1"),
    }
    middle = next(image for image in images if image.path.stem == "7-2")
    grey = [BRAIN.to_uint8(read_ct(middle.path.with_name(f"7-{n}.dcm")).hu) for n in (1, 2, 0)]
    assert np.array_equal(middle.pixels(), np.stack(grey, axis=2))


def test_plain_pictures_have_neither(dataset: Dataset) -> None:
    from dataclasses import replace

    plain = replace(
        dataset, images=(replace(dataset.images[0], window=None), *dataset.images[1:]), name="mixed"
    )
    with pytest.raises(DatasetError, match=r"neighbouring slices.*1 of 6 images of mixed are plain"):
        with_neighbours(plain)
    with pytest.raises(DatasetError, match="three HU windows"):
        with_windows(plain, (BRAIN, LUNG, SOFT_TISSUE))
