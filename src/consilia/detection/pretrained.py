"""Weights that were learnt elsewhere, taken into a detector where names and shapes agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from consilia.errors import WeightsError

BODY = ".body."
"""Stands in the name of every tensor of a body; weights of a classifier name the same tensors by what follows."""

LEAST_PART = 0.5
"""Of the body's numbers, which must come from the file: less is another network that has some names in common."""

SHOWN = 5


@dataclass(frozen=True)
class Taken:
    """What a file had for a detector: names of the detector's tensors."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[str, ...]


def take(model: nn.Module, data: bytes) -> Taken:
    """Fill `model` with those tensors of a file that have the name and the shape of its own; the others stay drawn.

    Where the file has no tensor of the whole name, one of the name within the body is taken: `conv1.weight` of a
    classifier is `backbone.body.conv1.weight` of a detector.

    Args:
        data: safetensors; float16 and bfloat16 are widened.

    Raises:
        WeightsError: no safetensors, a number that is not finite, or too little that fits; nothing has changed then.
    """
    try:
        given = load(data)
    except SafetensorError as error:
        raise WeightsError(
            f"expected pretrained weights as safetensors, never as a pickle (.pt, .pth): {error}"
        ) from error
    state = model.state_dict()
    found = {name: tensor for name in state if (tensor := _meant_for(name, given)) is not None}
    fits = {name: tensor for name, tensor in found.items() if tensor.shape == state[name].shape}
    what = Taken(
        tuple(sorted(fits)), tuple(sorted(state.keys() - found)), tuple(sorted(found.keys() - fits.keys()))
    )
    _require_enough(state, found, what)
    for name, tensor in fits.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{name}: expected finite numbers; the pretrained file holds NaN or infinity")
    for name, tensor in fits.items():
        state[name].copy_(tensor)
    return what


def _meant_for(name: str, given: Mapping[str, Tensor]) -> Tensor | None:
    within_body = name.partition(BODY)[2]
    tensor = given.get(name, given.get(within_body))
    return tensor if tensor is not None and tensor.is_floating_point() else None


def _require_enough(state: Mapping[str, Tensor], found: Mapping[str, Tensor], what: Taken) -> None:
    body = [name for name in state if BODY in name] or list(state)
    fitting = sum(state[name].numel() for name in set(body) & set(what.taken))
    whole = sum(state[name].numel() for name in body)
    if fitting >= LEAST_PART * whole:
        return
    shapes = [
        f"{name} {tuple(state[name].shape)}, in the file {tuple(found[name].shape)}"
        for name in what.other_shape
    ]
    raise WeightsError(
        f"expected pretrained weights with at least {LEAST_PART:.0%} of the numbers of the detector's body, "
        f"got {fitting} of {whole}, {len(what.taken)} of {len(state)} tensors"
        + _listed("not in the file", what.missing)
        + _listed("of another shape", shapes)
        + "; is model.backbone that of the file?"
    )


def _listed(title: str, names: tuple[str, ...] | list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; {title}: {', '.join(names[:SHOWN])}{more}"
