"""Where a detector is trained: the GPU if there is one, several through torchrun, and one core otherwise."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(days=400)
"""Beside rank 0 the others wait for the next round as long as it takes; a rank that died ends them all by torchrun."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """The device of this process, how it computes, and its rank among the processes that torchrun started."""

    device: torch.device = CPU
    bfloat16: bool = False
    """Autocast. Only where the GPU has it: a core without the hardware took 19 times as long (docs/detection.md)."""
    channels_last: bool = False
    ahead: int = 0
    """Batches that a thread prepares while the device is at work; 0 prepares each when it is asked for."""
    rank: int = 0
    ranks: int = 1

    @classmethod
    def here(cls) -> Placement:
        """What this machine and torchrun's environment say."""
        rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if not torch.cuda.is_available():
            return cls(rank=rank, ranks=ranks)
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        bfloat16 = torch.cuda.get_device_capability(device) >= (
            8,
            0,
        )  # Ampere; before it bfloat16 is emulated
        return cls(device, bfloat16, channels_last=True, ahead=2, rank=rank, ranks=ranks)

    def put(self, model: nn.Module) -> nn.Module:
        """The model on this device, in its memory format."""
        if self.channels_last:
            return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return model.to(self.device)

    def in_parallel(self, model: nn.Module) -> nn.Module:
        """The model, or its wrapper that averages the gradients of all ranks (DistributedDataParallel)."""
        if self.ranks == 1:
            return model
        join(self)
        return DistributedDataParallel(model, broadcast_buffers=False)

    def precision(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def own_randomness(self) -> AbstractContextManager[object]:
        """What is drawn inside leaves torch's generators as they were."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


def join(placement: Placement) -> None:
    """Meet the other ranks, once a process: messages by gloo, gradients on GPUs by NCCL."""
    if distributed.is_initialized():
        return
    if placement.device.type == "cuda":
        torch.cuda.set_device(placement.device)
    backend = "cpu:gloo,cuda:nccl" if placement.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
