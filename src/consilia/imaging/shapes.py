"""What the phantom's anatomy is drawn with: soft edges, ellipsoids, and smooth random fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.floating[Any]]
"""A value for every pixel of a plane."""

_EDGE_MM = 0.9
"""Over this width one tissue turns into the next: partial volume of a slice of several millimetres."""


@dataclass(frozen=True)
class SmoothField:
    """A random field with features of about `scale_mm`, smooth in x, y and level, deviation about 1."""

    seed: int
    scale_mm: float
    level_scale_mm: float = 18.0

    def at(self, x_axis_mm: Field, y_axis_mm: Field, level_mm: float) -> Field:
        """The field on the plane spanned by two axes: cubic B-splines over a lattice of random numbers."""
        level = level_mm / self.level_scale_mm + 100.0
        lower = int(np.floor(level))
        columns, first_column = _spline(x_axis_mm / self.scale_mm)
        rows, first_row = _spline(y_axis_mm / self.scale_mm)
        lattices = [
            np.random.default_rng(
                [self.seed, lower + i, first_row % 2**32, first_column % 2**32]
            ).standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
            for i in (0, 1)
        ]
        angle = 0.5 * np.pi * _smoothstep(np.float32(level - lower))
        lattice = np.cos(angle) * lattices[0] + np.sin(angle) * lattices[1]  # keeps the deviation on the way
        return np.asarray(2.1 * (rows @ lattice.astype(np.float32) @ columns.T), dtype=np.float32)


def _spline(position: Field) -> tuple[Field, int]:
    """Weights (positions, nodes) of the cubic B-spline, and the first node."""
    first = int(np.floor(position.min())) - 1
    offset = np.abs(position[:, None] - (first + np.arange(int(np.ceil(position.max())) - first + 2)))
    beyond = np.clip(2.0 - offset, 0.0, None)
    inner, outer = 2.0 / 3.0 - offset * offset * (1.0 - 0.5 * offset), beyond * beyond * beyond / 6.0
    return np.where(offset < 1.0, inner, outer).astype(np.float32), first


def _smoothstep(unit: Field | np.float32) -> Field:
    clipped = np.clip(unit, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped), dtype=np.float32)


def inside(distance_mm: Field, edge_mm: float = _EDGE_MM) -> Field:
    """1 where a signed distance is negative, 0 where it is positive, a ramp between."""
    return np.asarray(np.clip(0.5 - distance_mm / edge_mm, 0.0, 1.0), dtype=np.float32)


@dataclass(frozen=True)
class Ellipsoid:
    """An organ: centre and semi-axes in mm (x, y, level), turned by `turn_degrees` in the axial plane."""

    centre_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    turn_degrees: float = 0.0

    def radius(self, x: Field, y: Field, level_mm: float) -> Field:
        """Normalised radius: 1 on the surface."""
        turn = np.deg2rad(self.turn_degrees)
        dx, dy = x - np.float32(self.centre_mm[0]), y - np.float32(self.centre_mm[1])
        u = (np.cos(turn) * dx + np.sin(turn) * dy) / self.semi_axes_mm[0]
        v = (np.cos(turn) * dy - np.sin(turn) * dx) / self.semi_axes_mm[1]
        w = (level_mm - self.centre_mm[2]) / self.semi_axes_mm[2]
        return np.asarray(np.sqrt(u * u + v * v + w * w), dtype=np.float32)

    def distance_mm(self, x: Field, y: Field, level_mm: float) -> Field:
        """About the distance to the surface, negative inside."""
        if abs(level_mm - self.centre_mm[2]) > 1.5 * self.semi_axes_mm[2]:
            return np.full(x.shape, 1e3, dtype=np.float32)  # far above or below
        return (self.radius(x, y, level_mm) - 1.0) * np.float32(min(self.semi_axes_mm[:2]))

    def mirrored(self) -> Ellipsoid:
        """The same organ on the other side."""
        x, y, level = self.centre_mm
        return Ellipsoid((-x, y, level), self.semi_axes_mm, -self.turn_degrees)
