"""A detector's weights as a safetensors file: equal weights give equal bytes, nothing odd is ever loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from consilia.errors import WeightsError
from consilia.federation.tensors import TensorFile, require_same_shapes, write_tensors


def save(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write all weights of `model`, one tensor at a time, in the order of their names.

    Raises:
        WeightsError: a tensor is not float32, or holds a number that is not finite.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise WeightsError(f"{name}: expected float32, got {tensor.dtype}; such a tensor has no average")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"{name}: expected finite numbers; the training has diverged, lower the learning rate"
            )
    shapes = {name: tuple(state[name].shape) for name in sorted(state)}
    write_tensors(path, shapes, ((name, state[name].numpy()) for name in sorted(state)), metadata)


def load_into(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights of a file; nothing changes unless the whole file is good.

    Raises:
        WeightsError: the file is damaged, has other tensors than the model, or a number that is not finite;
            the message names the tensor.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    with TensorFile(path) as file:
        require_same_shapes(file, {name: tuple(tensor.shape) for name, tensor in state.items()})
        for name in state:
            # a NaN from one hospital would be in every global model from then on
            if not np.isfinite(file.read(name)).all():
                raise WeightsError(
                    f"{name}: expected finite numbers; the file holds NaN or infinity, refuse it"
                )
        for name, tensor in state.items():
            tensor.numpy()[...] = file.read(name)
