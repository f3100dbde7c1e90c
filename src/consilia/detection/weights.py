"""A detector's weights as a safetensors file: equal weights give equal bytes, nothing odd is ever loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from consilia.errors import WeightsError
from consilia.federation.tensors import (
    LOCAL_KEY,
    TensorFile,
    local_tensors,
    require_same_shapes,
    write_tensors,
)

NORMALISATIONS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    FrozenBatchNorm2d,
)


def norm_tensors(model: nn.Module) -> frozenset[str]:
    """The names of all tensors that belong to normalisation layers: what FedBN leaves at the hospital."""
    state = model.state_dict().keys()
    prefixes = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, NORMALISATIONS))
    return frozenset(name for name in state if prefixes and name.startswith(prefixes))


def save(
    model: nn.Module,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    names: Collection[str] | None = None,
) -> None:
    """Write the weights of `model`, all or those of some names, one tensor at a time, in the order of their names.

    Raises:
        WeightsError: a tensor is not float32, or holds a number that is not finite.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if names is None or name in names}
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise WeightsError(f"{name}: expected float32, got {tensor.dtype}; such a tensor has no average")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"{name}: expected finite numbers; the training has diverged, lower the learning rate"
            )
    shapes = {name: tuple(state[name].shape) for name in sorted(state)}
    write_tensors(path, shapes, ((name, state[name].cpu().numpy()) for name in sorted(state)), metadata)


def load_into(model: nn.Module, path: Path, names: Collection[str] | None = None) -> None:
    """Fill `model` with the weights of a file; nothing changes unless the whole file is good.

    Args:
        names: the tensors that the file must hold, all of the model's by default.

    Raises:
        WeightsError: the file is damaged, has other tensors than the model, or a number that is not finite;
            the message names the tensor.
    """
    everything = model.state_dict().items()
    state = {name: tensor.detach() for name, tensor in everything if names is None or name in names}
    with TensorFile(path) as file:
        require_same_shapes(file, {name: tuple(tensor.shape) for name, tensor in state.items()})
        for name in state:
            # a NaN from one hospital would be in every global model from then on
            if not np.isfinite(file.read(name)).all():
                raise WeightsError(
                    f"{name}: expected finite numbers; the file holds NaN or infinity, refuse it"
                )
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(file.read(name)))


def load_with_own_norm(model: nn.Module, weights: Path, own_norm: Path | None) -> None:
    """Fill a detector with a global model, or with an update of one, and with a hospital's own normalisation.

    Args:
        own_norm: the hospital's file; without one, or before it is written, the model keeps what it has.

    Raises:
        WeightsError: a file is not of this detector, or other layers are said to be local than its own.
    """
    own = norm_tensors(model)
    with TensorFile(weights) as file:
        if LOCAL_KEY in file.metadata and local_tensors(file) != own:
            raise WeightsError(
                f"{LOCAL_KEY}: expected the detector's {len(own)} normalisation tensors, the model names others"
            )
        whole = own <= file.tensors.keys()
    load_into(model, weights, None if whole else model.state_dict().keys() - own)
    if own_norm is not None and own_norm.exists():
        load_into(model, own_norm, own)
