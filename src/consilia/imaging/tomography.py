"""A CT scanner in a hundred lines: X-ray projections with photon noise, and filtered back-projection.

Both directions use the Fourier slice theorem (Bracewell 1956): the 1-D transform of a parallel projection
is a line through the origin of the image's 2-D transform. Lines are interpolated from the oversampled
transform with a Kaiser-Bessel kernel (Beatty et al., IEEE TMI 24(6), 2005, eq. 4-5); back-projection is the
adjoint of the same sparse matrix. This is as exact as ray sums, without their moire, and takes a tenth of a
second a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# NIST XCOM at 50, 60, 80, 100 keV: water, and cortical bone (ICRU-44) of 1.92 g/cm3, per mm; and how much of
# a filtered 120 kV beam each of the four energies stands for.
_WATER_PER_MM = np.array([0.02269, 0.02059, 0.01837, 0.01707], dtype=np.float32)
_BONE_PER_MM = np.array([0.08145, 0.06044, 0.04280, 0.03562], dtype=np.float32)
_SPECTRUM = np.array([0.15, 0.30, 0.35, 0.20], dtype=np.float32)

BONE_DENSITY = float(_SPECTRUM @ _BONE_PER_MM) / float(_SPECTRUM @ _WATER_PER_MM)
"""Cortical bone's attenuation relative to water in a thin layer: about 2.7, or 1700 HU."""

_OVERSAMPLING = 2
_KERNEL_CELLS = 4
_KERNEL_BETA = np.pi * np.sqrt((_KERNEL_CELLS / _OVERSAMPLING) ** 2 * (_OVERSAMPLING - 0.5) ** 2 - 0.8)


@dataclass(frozen=True)
class Grid:
    """A square image: `cells` x `cells` pixels of `cell_mm`, [cells // 2, cells // 2] centred at 0."""

    cells: int
    cell_mm: float

    def axis_mm(self) -> NDArray[np.floating[Any]]:
        """The centres of the pixels along either axis."""
        return ((np.arange(self.cells) - self.cells // 2) * self.cell_mm).astype(np.float32)

    def to_pixels(self, position_mm: float) -> float:
        """A position as a pixel coordinate whose 0 is the outer edge of the first pixel."""
        return position_mm / self.cell_mm + self.cells // 2 + 0.5


@dataclass(frozen=True)
class Geometry:
    """Parallel rays: `angles` over 180 degrees, `rays` of `ray_mm` each; half of them are zero padding."""

    angles: int = 360
    rays: int = 576
    ray_mm: float = 0.85

    def frequencies_per_mm(self) -> NDArray[np.float64]:
        """Of a projection's transform, in the order of the FFT."""
        return np.asarray(np.fft.fftfreq(self.rays, self.ray_mm), dtype=np.float64)


@lru_cache(maxsize=4)
def _slice_matrix(grid: Grid, geometry: Geometry) -> csr_array[Any]:
    """(angles x rays, fine x fine): interpolates the lines from the oversampled 2-D transform."""
    from scipy.sparse import csr_array

    fine = grid.cells * _OVERSAMPLING
    theta = np.arange(geometry.angles) * np.pi / geometry.angles
    radius = geometry.frequencies_per_mm() * fine * grid.cell_mm
    x, y = np.outer(np.cos(theta), radius).ravel(), np.outer(np.sin(theta), radius).ravel()
    inside = np.maximum(np.abs(x), np.abs(y)) < fine / 2 - _KERNEL_CELLS
    taps = np.arange(_KERNEL_CELLS) - _KERNEL_CELLS // 2 + 1
    columns, weights = [], []
    for along in (y, x):
        cell = np.floor(along).astype(np.int32)[:, None] + taps
        weights.append(_kaiser_bessel((along[:, None] - cell).astype(np.float32)))
        columns.append(cell % np.int32(fine))
    weights[0] *= inside[:, None]
    index = columns[0][:, :, None] * np.int32(fine) + columns[1][:, None, :]
    weight = weights[0][:, :, None] * weights[1][:, None, :]
    starts = np.arange(len(x) + 1, dtype=np.int32) * _KERNEL_CELLS**2
    shape = (len(x), fine * fine)
    return csr_array((weight.ravel(), index.ravel(), starts), shape=shape)


def _kaiser_bessel(offset_cells: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.special import i0

    inside = np.clip(1.0 - (2.0 / _KERNEL_CELLS * offset_cells) ** 2, 0.0, None)
    kernel = i0(np.float32(_KERNEL_BETA) * np.sqrt(inside)) / _KERNEL_CELLS * (inside > 0)
    return np.asarray(kernel, dtype=np.float32)


@lru_cache(maxsize=4)
def _deapodisation(grid: Grid) -> NDArray[np.floating[Any]]:
    """What the interpolation kernel did to the image, as a factor that undoes it."""
    position = (np.arange(grid.cells) - grid.cells // 2) / (grid.cells * _OVERSAMPLING)
    root = np.sqrt(_KERNEL_BETA**2 - (np.pi * _KERNEL_CELLS * position) ** 2)
    transform = np.sinh(root) / root
    return (1.0 / np.outer(transform, transform)).astype(np.float32)


def project(image: NDArray[np.complex64], grid: Grid, geometry: Geometry) -> NDArray[np.complex64]:
    """Line integrals in mm, shape (angles, rays), of an image of shape (cells, cells).

    The transform is linear, so two real images travel as one complex image.
    """
    from scipy import fft

    fine, half = grid.cells * _OVERSAMPLING, grid.cells // 2
    padded = np.zeros((fine, fine), dtype=np.complex64)
    padded[: grid.cells, : grid.cells] = image * _deapodisation(grid)
    transform = fft.fft2(np.roll(padded, (-half, -half), axis=(0, 1)), overwrite_x=True)
    lines = (_slice_matrix(grid, geometry) @ transform.ravel()).reshape(geometry.angles, geometry.rays)
    focal_blur = np.sinc(
        geometry.frequencies_per_mm() * geometry.ray_mm * 1.2
    )  # focal spot and detector element
    scale = (grid.cell_mm**2 / geometry.ray_mm * focal_blur).astype(np.float32)
    rays = fft.ifft(lines * scale, axis=1, overwrite_x=True)
    return np.asarray(np.fft.fftshift(rays, axes=1), dtype=np.complex64)


def back_project(
    sinogram: NDArray[np.floating[Any]], grid: Grid, geometry: Geometry, cutoff_per_mm: float
) -> NDArray[np.floating[Any]]:
    """Filtered back-projection of line integrals (angles, rays) in mm to an image (cells, cells).

    The ramp is Kak and Slaney's discrete one (Computerized Tomographic Imaging, eq. 3.61), which
    keeps the mean right; a Hann window takes it to zero at `cutoff_per_mm`, the sharpness of the kernel.
    """
    from scipy import fft

    frequency = np.abs(geometry.frequencies_per_mm())
    window = np.where(frequency < cutoff_per_mm, 0.5 + 0.5 * np.cos(np.pi * frequency / cutoff_per_mm), 0.0)
    lines = fft.fft(np.fft.ifftshift(sinogram, axes=1).astype(np.complex64), axis=1, overwrite_x=True)
    lines *= (_ramp(geometry) * window * (np.pi / geometry.angles) / geometry.rays).astype(np.float32)
    fine, half = grid.cells * _OVERSAMPLING, grid.cells // 2
    transform = (_slice_matrix(grid, geometry).T @ lines.ravel()).reshape(fine, fine)
    image = np.roll(fft.ifft2(transform, overwrite_x=True, norm="forward").real, (half, half), axis=(0, 1))
    return np.asarray(image[: grid.cells, : grid.cells] * _deapodisation(grid), dtype=np.float32)


def _ramp(geometry: Geometry) -> NDArray[np.float64]:
    offset = np.fft.fftfreq(geometry.rays, 1.0 / geometry.rays)
    impulse = np.zeros(geometry.rays)
    impulse[0] = 0.25
    odd = offset % 2 == 1
    impulse[odd] = -1.0 / (np.pi * offset[odd]) ** 2
    ramp: NDArray[np.float64] = np.fft.fft(impulse).real / geometry.ray_mm
    return ramp


def measure(
    water_mm: NDArray[np.floating[Any]],
    bone_mm: NDArray[np.floating[Any]],
    photons: float,
    hardening: float,
    random: np.random.Generator,
) -> NDArray[np.floating[Any]]:
    """What a scanner measures along its rays, in mm of water: four energies, photon and electronic noise.

    Args:
        water_mm: path length in water (density x length), shape (angles, rays).
        bone_mm: path length in cortical bone, same shape.
        photons: per ray before the patient; the dose.
        hardening: what is left of the beam hardening by bone after the scanner's own correction, 0..1.
    """

    def attenuation(
        water: NDArray[np.floating[Any]], bone: NDArray[np.floating[Any]] | float
    ) -> NDArray[np.floating[Any]]:
        passed = sum(
            share * np.exp(-(mu_water * water + mu_bone * bone))
            for share, mu_water, mu_bone in zip(_SPECTRUM, _WATER_PER_MM, _BONE_PER_MM, strict=True)
        )
        return np.asarray(passed, dtype=np.float32)

    padded = np.zeros_like(water_mm)
    quarter = water_mm.shape[1] // 4
    seen = slice(
        quarter, -quarter
    )  # beyond the field of view there is no detector, only the padding of the FFT
    water_mm, bone_mm = water_mm[:, seen], bone_mm[:, seen]
    calibration_mm = np.linspace(-20.0, 800.0, 1641, dtype=np.float32)
    calibration = -np.log(attenuation(calibration_mm, 0.0))
    passed = attenuation(water_mm, bone_mm)
    electronic = random.normal(0.0, 4.0, passed.shape)
    counted = np.maximum(random.poisson(photons * passed) + electronic, 1.0)
    measured_mm = np.interp(-np.log(counted / photons), calibration, calibration_mm)
    hardened_mm = np.interp(-np.log(passed), calibration, calibration_mm) - (
        water_mm + BONE_DENSITY * bone_mm
    )
    padded[:, seen] = measured_mm - (1.0 - hardening) * hardened_mm
    return padded
