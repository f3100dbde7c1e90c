"""A detector as ONNX, held against torch on pictures before anybody gets it.

The TorchScript exporter takes the detector whole, non-maximum suppression included, for pictures of one size: the
anchors are computed for it. Input `image`: float32 (3, size, size) in [0, 1]; outputs `boxes`, `scores`, `labels`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilia.detection.inference import Detector
from consilia.errors import VerificationError

OUTPUTS = ("boxes", "scores", "labels")
TRIALS = 5
BOX_TOLERANCE_PX = 0.01
SCORE_TOLERANCE = 1e-4


class _Whole(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        answer: Any = self.model([image])
        found = (
            answer[1] if isinstance(answer, tuple) else answer
        )  # scripted models answer (losses, findings)
        return tuple(found[0][name] for name in OUTPUTS)


def export_onnx(detector: Detector, path: Path) -> float:
    """Write the detector as ONNX; returns the largest deviation of a box from torch's, in pixels.

    Raises:
        VerificationError: onnxruntime finds something else than torch; the file is removed.
    """
    whole, size = _Whole(detector.model).eval(), detector.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the tracing of sizes, which are fixed on purpose
        torch.onnx.export(
            whole,
            (torch.rand(3, size, size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "findings"} for name in OUTPUTS},
        )
    try:
        return _deviation(whole, size, path)
    except VerificationError:
        path.unlink()
        raise


def _deviation(whole: nn.Module, size: int, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for trial in range(TRIALS):
        image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(trial))
        with torch.no_grad():
            ours = [found.numpy() for found in whole(image)]
        theirs = session.run(None, {"image": image.numpy()})
        if ours[0].shape != theirs[0].shape or not np.array_equal(ours[2], theirs[2]):
            raise VerificationError("expected the findings of torch from onnxruntime, it gives others")
        boxes, scores = (
            float(np.abs(a - b).max(initial=0.0)) for a, b in zip(ours[:2], theirs[:2], strict=True)
        )
        if boxes > BOX_TOLERANCE_PX or scores > SCORE_TOLERANCE:
            raise VerificationError(
                f"onnxruntime's boxes differ by {boxes:.3g} px, its scores by {scores:.3g}"
            )
        largest = max(largest, boxes)
    return largest
