"""A detector as ONNX, held against torch on pictures before anybody gets it.

The TorchScript exporter takes the detector whole, non-maximum suppression included, for pictures of one size: the
anchors are computed for it. Input `image`: float32 (3, size, size) in [0, 1], and for a detector that judges regions
`proposals`: float32 (n, 4) xyxy in its pixels. Outputs `boxes` (m, 4), `scores` (m,), `labels` (m,).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from consilia.detection.inference import Detector
from consilia.detection.proposals import judges_proposals, search
from consilia.detection.training import as_input
from consilia.errors import InputError, VerificationError
from consilia.whole_file import whole_file

OUTPUTS = ("boxes", "scores", "labels")
TRIALS = 5
BOX_TOLERANCE_PX = 0.01
SCORE_TOLERANCE = 1e-4

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """How many findings torch and onnxruntime gave alike, and how far their boxes are apart at most."""

    findings: int
    largest_deviation_px: float


class _Whole(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, ...]:
        if proposals is None:
            found: Any = self.model([image])
        else:
            no_lesion = {"boxes": proposals[:0], "labels": torch.zeros(0, dtype=torch.int64)}
            found = self.model([image], [{"proposals": proposals, **no_lesion}])
        return tuple(found[0][name] for name in OUTPUTS)


def export_onnx(
    detector: Detector,
    path: Path,
    pictures: Sequence[Picture] = (),
    facts: Mapping[str, str] | None = None,
) -> Agreement:
    """Write the detector as ONNX, if onnxruntime finds what torch finds.

    Args:
        detector: on the CPU.
        path: of the file, which has its name only if both agree.
        pictures: what both are tried on, uint8 (H, W) or (H, W, 3), the longer side `image_size`; none: drawn ones.
        facts: written into the file as its metadata.

    Raises:
        InputError: the libraries are not installed.
        VerificationError: onnxruntime finds something else than torch, or neither finds anything.
    """
    _require_libraries()
    whole, size = _Whole(detector.model.cpu()).eval(), detector.image_size
    tried = pictures or [drawn_picture(size, seed) for seed in range(TRIALS)]
    inputs = [_inputs(whole.model, _squared(picture, size)) for picture in tried]
    written = _with_facts(_exported(whole, inputs[0]), facts or {})
    agreement = _agreement(whole, written, inputs)
    with whole_file(path) as file:
        file.write(written)
    return agreement


def drawn_picture(size: int, seed: int) -> Picture:
    """Bright spots of several sizes on noise, uint8 (size, size, 3): something that a detector may find."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    picture = draw.normal(60, 12, (size, size))
    for _ in range(6):
        x, y = draw.uniform(0, size, 2)
        wide, high = draw.uniform(size / 24, size / 5, 2)
        inside = ((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2 < 1
        picture[inside] += draw.uniform(30, 150)
    grey = np.clip(picture, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _require_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            "expected onnx and onnxruntime, install them with `pip install consilia[export]`"
        ) from error


def _squared(picture: Picture, size: int) -> Picture:
    """The picture with black to its right and below: the exported graph knows squares alone."""
    height, width = picture.shape[:2]
    square = np.zeros((size, size, 3), np.uint8)
    square[:height, :width] = picture if picture.ndim == 3 else picture[:, :, None]
    return square


def _inputs(model: nn.Module, picture: Picture) -> dict[str, Tensor]:
    inputs = {"image": as_input(picture.astype(np.float32) / np.float32(255)).contiguous()}
    if judges_proposals(model):
        inputs["proposals"] = torch.from_numpy(search(picture))
    return inputs


def _exported(whole: nn.Module, inputs: Mapping[str, Tensor]) -> bytes:
    lengths = {name: {0: "findings"} for name in OUTPUTS}
    if "proposals" in inputs:
        lengths["proposals"] = {0: "regions"}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # about the tracing of sizes, which are fixed on purpose
        torch.onnx.export(
            whole,
            tuple(inputs.values()),
            file,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=list(OUTPUTS),
            dynamic_axes=lengths,
        )
        return file.read_bytes()


def _with_facts(written: bytes, facts: Mapping[str, str]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(written)
    onnx.helper.set_model_props(model, dict(facts))
    return bytes(model.SerializeToString())


def _agreement(whole: nn.Module, written: bytes, tried: Sequence[Mapping[str, Tensor]]) -> Agreement:
    import onnxruntime

    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    findings, largest = 0, 0.0
    for inputs in tried:
        with torch.no_grad():
            ours = [found.numpy() for found in whole(*inputs.values())]
        theirs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        findings += len(ours[1])
        largest = max(largest, _largest_deviation(ours, theirs))
    if not findings:
        raise VerificationError(
            f"neither torch nor onnxruntime finds anything on {len(tried)} pictures, so nothing was compared: "
            "give pictures with findings (--images)"
        )
    return Agreement(findings, largest)


def _largest_deviation(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Each finding has one partner of equal label, score and box; the order of equal scores is nobody's promise."""
    if ours[0].shape != theirs[0].shape:
        raise VerificationError(
            f"expected torch's {len(ours[0])} findings from onnxruntime, it gives {len(theirs[0])}"
        )
    free = np.ones(len(theirs[0]), bool)
    largest = 0.0
    for box, score, label in zip(*ours, strict=True):
        apart = np.abs(theirs[0] - box).max(axis=1)
        alike = free & (theirs[2] == label) & (np.abs(theirs[1] - score) <= SCORE_TOLERANCE)
        apart[~alike] = np.inf
        partner = int(apart.argmin())
        if apart[partner] > BOX_TOLERANCE_PX:
            raise VerificationError(
                f"expected from onnxruntime what torch finds, a finding of score {score:.4f} has no partner within "
                f"{BOX_TOLERANCE_PX} px and {SCORE_TOLERANCE} of score"
            )
        free[partner] = False
        largest = max(largest, float(apart[partner]))
    return largest
