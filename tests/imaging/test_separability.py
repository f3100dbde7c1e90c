"""The membership check fires on a planted difference between the case and its covers, and not where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from consilia.imaging.canonical import canonical_pixels
from consilia.imaging.cases import BRAIN
from consilia.imaging.phantom import SITES, write_phantom_hospital
from consilia.imaging.readers import read_dataset
from consilia.imaging.separability import REFUSE_ODDS, Verdict, guess_probability, separability

SIZE = 96
HIDDEN = 12


def head(seed, *, noise=4.0, blur=0.12):
    """A round body with texture of its own, as a scanner of this noise and kernel shows it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    radius = np.hypot(x / random.uniform(0.7, 0.8), y / random.uniform(0.8, 0.9))
    texture = random.normal(0, 1, (SIZE, SIZE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    coarse = np.fft.ifft2(np.fft.fft2(texture) * np.exp(-((frequency / 0.03) ** 2))).real
    grain = np.fft.ifft2(
        np.fft.fft2(random.normal(0, 1, (SIZE, SIZE))) * np.exp(-((frequency / (2 * blur)) ** 2))
    ).real
    inside = 110 + 12 * coarse / coarse.std() + noise * grain / grain.std()
    image = np.where(radius < 0.93, inside, np.where(radius < 1.0, 255, 0))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


ARCHIVE = [head(seed) for seed in range(31)]
PATIENTS = [f"patient-{seed}" for seed in range(31)]


def marked(pixels):
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text((2, 2), "L 7", fill=255)
    return np.asarray(image)


@pytest.mark.parametrize(
    "planted",
    [
        lambda seed: head(seed, noise=8.0),
        lambda seed: head(seed, blur=0.25),
        lambda seed: marked(head(seed)),
        lambda seed: head(seed) // 8 * 8,
    ],
    ids=["half the dose", "a sharp kernel", "a text mark", "32 grey levels"],
)
def test_a_planted_difference_is_refused(planted):
    for seed in range(100, 106):
        found = separability([planted(seed)], ARCHIVE, PATIENTS, HIDDEN)
        assert found.verdict is Verdict.REFUSE, found
        assert found.guess > 0.5


def test_what_is_strange_is_named():
    mark = separability([marked(head(100))], ARCHIVE, PATIENTS, HIDDEN)
    assert mark.feature == "marks in the corners"
    assert separability([head(100, noise=16.0)], ARCHIVE, PATIENTS, HIDDEN).feature == "noise"


def test_matched_cases_are_refused_as_rarely_as_stated():
    verdicts = [separability([head(seed)], ARCHIVE, PATIENTS, HIDDEN).verdict for seed in range(200, 240)]
    # the rank among the archive's patients is uniform: 2 of 40 expected, 6 are three standard deviations more
    assert verdicts.count(Verdict.REFUSE) <= 40 * REFUSE_ODDS + 3 * np.sqrt(40 * REFUSE_ODDS)
    assert verdicts.count(Verdict.ADMIT) >= 24


def test_neighbours_that_are_one_patient_s_do_not_cry_wolf():
    # a patient's slices are alike: a classifier trained on them would tell them from anybody else's
    slices = [np.clip(head(300).astype(int) + shift, 0, 255).astype(np.uint8) for shift in (-1, 0, 1)]
    assert separability(slices, ARCHIVE, PATIENTS, HIDDEN).verdict is not Verdict.REFUSE


def test_an_archive_of_one_patient_cannot_be_compared_with():
    with pytest.raises(ValueError, match="two patients"):
        separability([head(1)], ARCHIVE[:3], ["one"] * 3, HIDDEN)


@pytest.mark.parametrize(("auc", "guess"), [(0.5, 1 / 12), (0.7, 0.23), (1.0, 1.0)])
def test_the_server_s_best_guess(auc, guess):
    assert guess_probability(auc, 12) == pytest.approx(guess, abs=0.005)


@pytest.mark.slow
def test_phantom_scanners_are_told_apart_and_patients_of_one_scanner_are_not(tmp_path):
    def pool(name, site, patients, seed):
        write_phantom_hospital(
            tmp_path / name,
            scanner=site.scanner,
            lesions=site.lesions,
            patients=patients,
            slices_per_patient=1,
            seed=seed,
        )
        images = read_dataset(tmp_path / name, window=BRAIN).images
        return [canonical_pixels(image, 160)[0] for image in images], [image.patient for image in images]

    site = SITES[0]
    archive, patients = pool("archive", site, 31, 1)
    same, _ = pool("same", site, 8, 2)
    sharp, _ = pool("sharp", replace(site, scanner=replace(site.scanner, cutoff_per_mm=0.64)), 4, 3)
    noisy, _ = pool("noisy", replace(site, scanner=replace(site.scanner, photons=3e5)), 4, 4)
    verdicts = [separability([pixels], archive, patients, HIDDEN).verdict for pixels in same]
    assert verdicts.count(Verdict.REFUSE) <= 2
    for pixels in (*sharp, *noisy, *map(marked, same[:4])):
        assert separability([pixels], archive, patients, HIDDEN).verdict is Verdict.REFUSE


def test_a_case_that_is_plainer_than_all_is_still_guessed_by_chance():
    found = min(
        (separability([head(seed)], ARCHIVE, PATIENTS, HIDDEN) for seed in range(200, 210)),
        key=lambda item: item.auc,
    )
    assert found.auc < 0.4 and found.guess == pytest.approx(1 / HIDDEN, abs=0.001)
