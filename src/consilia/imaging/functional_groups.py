"""The header of one frame of an enhanced CT, as a plain CT image has it (PS3.3 A.38, C.7.6.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilia.errors import UnusableImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MACROS = (
    ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices")),
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PixelValueTransformationSequence", ("RescaleIntercept", "RescaleSlope", "RescaleType")),
    ("FrameAnatomySequence", ()),
    ("CTAcquisitionDetailsSequence", ("GantryDetectorTilt", "DataCollectionDiameter")),
    ("CTXRayDetailsSequence", ("KVP",)),
    ("CTReconstructionSequence", ("ReconstructionDiameter",)),
)


def frame_header(header: Dataset, index: int) -> Dataset:
    """All attributes of the file, with those that its functional groups give this frame in their plain places.

    Raises:
        UnusableImageError: the frame has no functional groups.
    """
    from pydicom.dataset import Dataset

    flat = Dataset()
    flat.update(header)
    flat.pop("NumberOfFrames", None)
    groups = _groups(header, index)
    # the others' are not this frame's, to be cleaned and counted again with each
    _put(flat, "PerFrameFunctionalGroupsSequence", [groups[0]])
    for sequence, keywords in _MACROS:
        item = _first(groups, sequence)
        for keyword in keywords if item is not None else ():
            if item.get(keyword) is not None:
                flat[keyword] = item[keyword]
    anatomy = _first(groups, "FrameAnatomySequence")
    if anatomy is not None and anatomy.get("FrameLaterality"):
        _put(flat, "ImageLaterality", anatomy.FrameLaterality)
    kind = _first(groups, "CTImageFrameTypeSequence")
    if kind is not None and kind.get("FrameType"):
        _put(flat, "ImageType", kind.FrameType)
    _put(flat, "InstanceNumber", index + 1)
    return flat


def _put(flat: Dataset, keyword: str, value: Any) -> None:
    """As an element of its own: the one that is there belongs to the file, and so to all frames."""
    flat.pop(keyword, None)
    setattr(flat, keyword, value)


def _groups(header: Dataset, index: int) -> tuple[Dataset, ...]:
    """The frame's own group and the shared one, in this order."""
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    if index >= len(own):
        raise UnusableImageError("expected functional groups for every frame (5200,9230), some are missing")
    return (own[index], *shared[:1])


def _first(groups: tuple[Dataset, ...], sequence: str) -> Any:
    """The only item of a macro's sequence, from the first group that has it."""
    found = next((group[sequence].value for group in groups if group.get(sequence)), ())
    return found[0] if found else None
