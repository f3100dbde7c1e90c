"""The phantom's heads: outlines, skull, brain and lesions as fields over an axial plane.

Millimetres on DICOM's axes: x to the patient's left, y to the back, `level_mm` to the top with 0 near the
line from the anterior to the posterior commissure. Sizes follow adult averages; every patient varies them.
No outline is an ellipse: smooth random fields bend them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilia.imaging.shapes import Ellipsoid, Field, SmoothField, inside

FAT_HU, SKIN_HU, MUSCLE_HU, CSF_HU = -95.0, 35.0, 58.0, 6.0
WHITE_HU, GREY_HU, FALX_HU, SINUS_HU = 27.0, 37.5, 55.0, 58.0
SMALLEST_SECTION_MM = 7.0

TOP_MM = 54.0
"""Slices lie between 0 and here: basal ganglia, ventricles, centrum semiovale."""


@dataclass(frozen=True)
class Lesion:
    """A haemorrhage, or a mass with a dark core and a bright rim; oedema around either."""

    category: int
    """1-based index into `CATEGORIES`."""
    body: Ellipsoid
    contrast_hu: float
    """Of blood or rim above grey matter."""
    oedema_mm: float
    seed: int

    def radius(self, axis_mm: Field, x: Field, y: Field, level_mm: float) -> Field:
        """Normalised radius with an irregular outline."""
        size_mm = max(self.body.semi_axes_mm)
        bumps = SmoothField(self.seed, 0.55 * size_mm).at(axis_mm, axis_mm, level_mm)
        bumps += 0.4 * SmoothField(self.seed + 1, 0.22 * size_mm).at(axis_mm, axis_mm, level_mm)
        return self.body.radius(x, y, level_mm) * (1.0 + np.float32(0.13) * bumps)


CATEGORIES = ("haemorrhage", "mass")


@dataclass(frozen=True)
class Head:
    """One patient. All that varies, drawn once; the slices then follow without chance."""

    seed: int
    half_width_mm: float
    half_length_mm: float
    atrophy: float
    """0 young to 1 old: wide ventricles and sulci."""
    skull_mm: float
    scalp_mm: float
    turn_degrees: float
    shift_mm: tuple[float, float]
    outline: tuple[tuple[float, float], ...]
    """Amplitude and phase of the outline's harmonics 2, 3, ..."""
    calcified: bool
    lesions: tuple[Lesion, ...] = ()


def draw_head(random: np.random.Generator, seed: int) -> Head:
    """A head without lesions."""
    return Head(
        seed=seed,
        half_width_mm=random.normal(75.0, 2.5),
        half_length_mm=random.normal(93.0, 3.0),
        atrophy=random.uniform(0.0, 1.0),
        skull_mm=random.uniform(5.0, 8.0),
        scalp_mm=random.uniform(3.5, 6.5),
        turn_degrees=random.normal(0.0, 4.0),
        shift_mm=(random.normal(0.0, 3.0), random.normal(0.0, 3.0)),
        outline=tuple((random.normal(0.0, 0.012 / k), random.uniform(0.0, 2.0 * np.pi)) for k in range(2, 8)),
        calcified=bool(random.random() < 0.6),
    )


@dataclass(frozen=True, eq=False)
class Plane:
    """A rendered slice, all of shape (cells, cells)."""

    water: Field
    """Density of soft tissue relative to water."""
    bone: Field
    """Share of cortical bone."""
    lesions: tuple[tuple[int, NDArray[np.bool_]], ...]
    """Category and extent of each lesion; oedema is not part of it."""


def render(head: Head, axis_mm: Field, level_mm: float) -> Plane:
    """The head's tissues at a level, on a square plane with this axis in both directions."""
    frame = _Frame.of(head, axis_mm, level_mm)
    tissue = _brain_hu(frame)
    lesions = []
    for lesion in head.lesions:
        tissue, extent = _add_lesion(frame, tissue, lesion)
        if extent.any():
            lesions.append((lesion.category, extent))
    bone = _bone(frame)
    shell = _shell_hu(frame)
    brain = inside(-frame.skull_depth_mm)
    hu = shell + (tissue - shell) * brain
    air = inside(frame.skin_distance_mm)
    water = (1.0 + hu / 1000.0) * air * (1.0 - bone)
    return Plane(water.astype(np.float32), (bone * air).astype(np.float32), tuple(lesions))


@dataclass(frozen=True, eq=False)
class _Frame:
    """The coordinates of a slice, in the patient and relative to the surfaces of the head."""

    head: Head
    axis_mm: Field
    level_mm: float
    x: Field
    """The patient's own axes, bent a little, so that nothing inside is regular."""
    y: Field
    angle: Field
    """Around the head, 0 in front."""
    skin_distance_mm: Field
    """Negative inside the head."""
    skull_depth_mm: Field
    """Below the inner table of the skull: positive in the brain."""
    skull_mm: Field
    bone_position: Field
    """0 at the outer table, 1 at the inner."""

    @classmethod
    def of(cls, head: Head, axis_mm: Field, level_mm: float) -> _Frame:
        turn = np.deg2rad(head.turn_degrees)
        x0 = axis_mm[None, :] - np.float32(head.shift_mm[0])
        y0 = axis_mm[:, None] - np.float32(head.shift_mm[1])
        x = (np.cos(turn) * x0 + np.sin(turn) * y0).astype(np.float32)
        y = (np.cos(turn) * y0 - np.sin(turn) * x0).astype(np.float32)
        angle, radius = np.arctan2(x, -y), np.hypot(x, y)
        outer = _outline_mm(head, angle, level_mm)
        muscle = (
            9.0 * np.clip(1.0 - level_mm / 34.0, 0.0, 1.0) * np.exp(-(((np.abs(angle) - 1.25) / 0.42) ** 2))
        )
        wobble = SmoothField(head.seed + 1, 30.0).at(axis_mm, axis_mm, level_mm)
        skull_mm = head.skull_mm * (
            1.0 + 0.10 * wobble + 0.25 * np.exp(-(((np.pi - np.abs(angle)) / 0.35) ** 2))
        )
        skull_mm += head.skull_mm * 0.15 * np.cos(angle)
        table = outer - head.scalp_mm * (1.0 + 0.12 * wobble) - muscle
        bend = [SmoothField(head.seed + i, 22.0).at(axis_mm, axis_mm, level_mm) for i in (2, 3)]
        return cls(
            head=head,
            axis_mm=axis_mm,
            level_mm=level_mm,
            x=(x + 1.4 * bend[0]).astype(np.float32),
            y=(y + 1.4 * bend[1]).astype(np.float32),
            angle=angle.astype(np.float32),
            skin_distance_mm=(radius - outer).astype(np.float32),
            skull_depth_mm=(table - skull_mm - radius).astype(np.float32),
            skull_mm=skull_mm.astype(np.float32),
            bone_position=((table - radius) / skull_mm).astype(np.float32),
        )


def _outline_mm(head: Head, angle: Field, level_mm: float) -> Field:
    """The skin's radius around the head: an egg, wider behind, that closes towards the top."""
    ellipse = 1.0 / np.hypot(np.sin(angle) / head.half_width_mm, np.cos(angle) / head.half_length_mm)
    egg = (
        1.0
        - 0.025 * np.cos(angle) * np.sin(angle) ** 2 * 2.0
        - 0.012 * np.exp(-(((np.abs(angle) - 0.9) / 0.4) ** 2))
    )
    waves = sum(size * np.cos(k * angle + phase) for k, (size, phase) in enumerate(head.outline, start=2))
    height = np.sqrt(max(1.0 - ((level_mm - 8.0) / 100.0) ** 2, 0.05))
    return np.asarray(ellipse * egg * (1.0 + waves) * height, dtype=np.float32)


def _bone(frame: _Frame) -> Field:
    """Share of cortical bone: dense tables, spongy diploe between, sutures, calcified pineal and plexus."""
    position, head = frame.bone_position, frame.head
    depth_mm = position * frame.skull_mm
    edge = inside(-depth_mm) * inside(depth_mm - frame.skull_mm)
    from_table = np.minimum(depth_mm, frame.skull_mm - depth_mm)
    sponge = 0.42 + 0.10 * SmoothField(head.seed + 4, 2.6).at(frame.axis_mm, frame.axis_mm, frame.level_mm)
    bone = edge * (sponge + (0.93 - sponge) * inside(from_table - 1.7, 1.4))
    jag = SmoothField(head.seed + 5, 3.0).at(frame.axis_mm, frame.axis_mm, frame.level_mm)
    for suture in (0.75 + 0.012 * frame.level_mm, 2.35 + 0.006 * frame.level_mm):
        across_mm = (np.abs(frame.angle) - suture) * 70.0 + 1.6 * jag
        bone *= 1.0 - 0.65 * inside(np.abs(across_mm) - 0.7)
    if head.calcified:
        spots = [Ellipsoid((0.5, 25.0, 4.0), (2.2, 2.6, 4.0))]
        plexus = Ellipsoid((21.0, 36.0, 8.0), (2.4, 3.4, 4.5))
        for spot in (*spots, plexus, plexus.mirrored()):
            bone += 0.13 * inside(spot.distance_mm(frame.x, frame.y, frame.level_mm), 1.6)
    return bone.astype(np.float32)


def _shell_hu(frame: _Frame) -> Field:
    """Skin, fat and temporal muscle outside the skull; cerebrospinal fluid inside it."""
    depth_mm = -frame.skin_distance_mm
    texture = SmoothField(frame.head.seed + 6, 2.5).at(frame.axis_mm, frame.axis_mm, frame.level_mm)
    fat = FAT_HU + 14.0 * texture + (SKIN_HU - FAT_HU) * inside(depth_mm - 1.8)
    muscle = MUSCLE_HU + 12.0 * np.minimum(texture, 0.0)
    outside = fat + (muscle - fat) * inside(frame.head.scalp_mm * 0.75 - depth_mm)
    inner = inside(1.0 - frame.bone_position, 0.2)
    return np.asarray(outside + (CSF_HU - outside) * inner, dtype=np.float32)


def _brain_hu(frame: _Frame) -> Field:
    """White matter, cortex folded by sulci, deep grey matter, ventricles, falx and sinuses."""
    head, x, y, level = frame.head, frame.x, frame.y, frame.level_mm
    sulcus_mm, depth_mm = _sulci(frame)
    texture = SmoothField(head.seed + 7, 5.0).at(frame.axis_mm, frame.axis_mm, level)
    hu = WHITE_HU + 0.9 * texture - 2.0 * head.atrophy * inside(12.0 - depth_mm, 10.0)
    grey = inside(np.minimum(sulcus_mm, depth_mm) - 4.2, 3.0)
    for organ in _deep_grey(head):
        grey = np.maximum(grey, inside(organ.distance_mm(x, y, level), 2.0))
    hu += (GREY_HU - hu) * grey
    opening = SmoothField(head.seed + 11, 11.0).at(frame.axis_mm, frame.axis_mm, level)
    width_mm = np.clip(0.25 + 0.75 * head.atrophy + 0.4 * opening, -0.6, None)
    fluid = np.maximum(inside(sulcus_mm - width_mm, 1.5), inside(depth_mm - 0.2))
    for ventricle in _ventricles(head):
        fluid = np.maximum(fluid, inside(ventricle.distance_mm(x, y, level), 1.5))
    hu += (CSF_HU - hu) * fluid
    return _add_falx(frame, np.asarray(hu, dtype=np.float32))


def _sulci(frame: _Frame) -> tuple[Field, Field]:
    """Distance to the nearest sulcus or fissure, and depth below the brain's surface, in mm.

    Sulci are the zero lines of a random field stretched inwards, as far as they reach; value over
    gradient is the distance to first order.
    """
    head, level = frame.head, frame.level_mm
    gap_mm = 0.8 + 2.2 * head.atrophy
    wave = SmoothField(head.seed + 8, 26.0).at(frame.axis_mm, frame.axis_mm, level)
    depth_mm = frame.skull_depth_mm - gap_mm * (1.0 + 0.3 * wave)
    folds = _around(frame, depth_mm, SmoothField(head.seed + 9, 1.0, 14.0), 8.5, 13.0)
    folds += 0.4 * _around(frame, depth_mm, SmoothField(head.seed + 10, 1.0, 12.0), 4.5, 6.0)
    cell_mm = float(frame.axis_mm[1] - frame.axis_mm[0])
    slope = np.hypot(*np.gradient(folds, cell_mm))
    reach_mm = 17.0 + 4.0 * wave
    distance = (
        np.abs(folds) / np.maximum(slope, 0.09)
        + 2.5 * np.clip(depth_mm / reach_mm - 0.55, 0.0, None) ** 2 * 9.0
    )
    midline_mm = np.abs(frame.x) - 0.2
    open_mm = np.clip(np.minimum(np.abs(frame.y + 34.0), np.abs(frame.y - 30.0)), 0.0, None)
    covered = (frame.y > -34.0) & (frame.y < 30.0) & (level < 36.0)
    distance = np.minimum(distance, np.where(covered, np.hypot(midline_mm, open_mm), midline_mm))
    return _with_sylvian(frame, np.asarray(distance, dtype=np.float32)), depth_mm.astype(np.float32)


def _around(frame: _Frame, depth_mm: Field, noise: SmoothField, arc_mm: float, inward_mm: float) -> Field:
    """A smooth field over (angle, depth), so that its zero lines run inwards."""
    from scipy.ndimage import map_coordinates

    around, inward_axis_mm = np.linspace(-np.pi, np.pi, 961), np.linspace(-4.0, 60.0, 97)
    table = noise.at(around * 72.0 / arc_mm, inward_axis_mm / inward_mm, frame.level_mm)
    columns = (np.arctan2(frame.x, -frame.y) + np.pi) * (960.0 / (2.0 * np.pi))
    rows = np.clip((depth_mm + 4.0) * (96.0 / 64.0), 0.0, 96.0)
    return np.asarray(map_coordinates(table, [rows, columns], order=1), dtype=np.float32)


def _with_sylvian(frame: _Frame, distance: Field) -> Field:
    """The lateral fissure and the insula's cistern behind it, at the levels of the basal ganglia."""
    fade_mm = np.float32(max(0.0, frame.level_mm - 14.0) * 0.5)
    bend = [
        SmoothField(frame.head.seed + i, 9.0).at(frame.axis_mm, frame.axis_mm, frame.level_mm)
        for i in (12, 13)
    ]
    x, y = frame.x + 1.8 * bend[0], frame.y + 1.8 * bend[1]
    corners = ((36.0, -17.0), (40.0, -4.0), (38.5, 12.0), (46.0, -13.0), (68.0, -20.0))
    for side in (-1.0, 1.0):
        for start, end in ((0, 1), (1, 2), (0, 3), (3, 4)):
            from_x, to_x = side * corners[start][0], side * corners[end][0]
            segment_mm = _segment_mm(x, y, (from_x, corners[start][1]), (to_x, corners[end][1]))
            distance = np.minimum(distance, segment_mm + 0.2 + fade_mm)
    return distance


def _segment_mm(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float]) -> Field:
    """Distance to a straight segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.asarray(np.hypot(x - start[0] - along * dx, y - start[1] - along * dy), dtype=np.float32)


def _deep_grey(head: Head) -> tuple[Ellipsoid, ...]:
    """Caudate head, lentiform nucleus and thalamus of both sides."""
    left = (
        Ellipsoid((13.5, -20.0, 8.0), (4.5, 9.5, 14.0), -18.0),
        Ellipsoid((25.0, -3.0, 3.0), (6.0, 16.0, 13.0), 14.0),
        Ellipsoid((10.5, 13.0, 6.0), (7.5, 12.5, 12.0), -25.0),
    )
    return (*left, *(organ.mirrored() for organ in left))


def _ventricles(head: Head) -> tuple[Ellipsoid, ...]:
    """Frontal horns, bodies and atria of the lateral ventricles, and the third ventricle."""
    wide = 0.65 + 0.85 * head.atrophy
    left = (
        Ellipsoid((7.5 + 1.5 * wide, -28.0, 10.0), (3.2 * wide, 13.0, 16.0), -20.0),
        Ellipsoid((9.0 + 2.0 * wide, 0.0, 25.0), (4.2 * wide, 33.0, 11.0), -7.0),
        Ellipsoid((22.0 + 1.5 * wide, 38.0, 10.0), (4.6 * wide, 14.0, 15.0), 24.0),
        Ellipsoid((26.0, 56.0, 4.0), (2.6 * wide, 13.0, 8.0), 14.0),
    )
    return (*left, *(horn.mirrored() for horn in left), Ellipsoid((0.0, 4.0, 0.0), (1.8 * wide, 13.0, 11.0)))


def _add_falx(frame: _Frame, hu: Field) -> Field:
    """The falx, a bright line in the fissure, and the venous sinuses at its ends."""
    x, y, level = frame.x, frame.y, frame.level_mm
    reach = np.maximum(inside(y + 38.0, 6.0), inside(34.0 - y, 6.0))
    falx = np.maximum(reach, np.float32(np.clip((level - 36.0) / 6.0, 0.0, 1.0))) * inside(
        np.abs(x) - 0.45, 0.9
    )
    hu += (FALX_HU - hu) * 0.75 * falx
    behind = inside(frame.skull_depth_mm - 5.5 + 1.6 * np.abs(x), 1.2)
    front = inside(frame.skull_depth_mm - 2.5 + 1.2 * np.abs(x), 1.2)
    hu += (SINUS_HU - hu) * np.where(y > 0, behind, front)
    vein = Ellipsoid((0.0, 31.0, 6.0), (1.8, 3.0, 9.0)).distance_mm(x, y, level)
    return np.asarray(hu + (48.0 - hu) * inside(vein), dtype=np.float32)


def _is_visible(extent: NDArray[np.bool_], axis_mm: Field) -> bool:
    """A section smaller than this is not drawn: nobody could label it, and what is drawn must be labelled."""
    sides = (np.flatnonzero(extent.any(axis=axis)) for axis in (0, 1))
    return all(len(side) and axis_mm[side[-1]] - axis_mm[side[0]] >= SMALLEST_SECTION_MM for side in sides)


def _add_lesion(frame: _Frame, hu: Field, lesion: Lesion) -> tuple[Field, NDArray[np.bool_]]:
    """Draw a lesion and its oedema into the brain; its extent ends at the skull and the falx."""
    radius = lesion.radius(frame.axis_mm, frame.x, frame.y, frame.level_mm)
    size_mm = np.float32(min(lesion.body.semi_axes_mm[:2]))
    distance = (radius - 1.0) * size_mm
    own_side = np.sign(lesion.body.centre_mm[0]) * frame.x > 1.0
    room = (frame.skull_depth_mm > 2.0) & own_side
    core = inside(distance, 1.6) * room
    if not _is_visible(core > 0.5, frame.axis_mm):
        return hu, np.zeros(core.shape, dtype=np.bool_)
    oedema = inside(distance - lesion.oedema_mm, 3.0) * room * np.clip((GREY_HU + 1.0 - hu) / 8.0, 0.25, 1.0)
    hu = hu + (19.0 - hu) * np.where(hu > 15.0, oedema, 0.0).astype(np.float32)
    mottle = SmoothField(lesion.seed + 2, 4.0).at(frame.axis_mm, frame.axis_mm, frame.level_mm)
    bright = GREY_HU + lesion.contrast_hu + 2.0 * mottle
    if CATEGORIES[lesion.category - 1] == "mass":
        rim_mm = 2.5 + 0.12 * float(size_mm) + 0.6 * mottle
        bright = 14.0 + mottle + (bright - 14.0) * inside(-distance - rim_mm, 1.5)
    return np.asarray(hu + (bright - hu) * core, dtype=np.float32), core > 0.5
