"""What stands in for NCCL where there is no GPU: vLLM's `PyNcclCommunicator` as the transfers use it, over gloo."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist


class GlooCommunicator:
    """Broadcasts for real, between processes too; like NCCL it waits without end, until it is destroyed."""

    disabled = False

    def __init__(self, group: Any, device: torch.device) -> None:
        store = dist.PrefixStore("gloo", group.store)
        self._gloo = dist.ProcessGroupGloo(store, group.rank, group.world_size, timedelta(seconds=600))
        self._destroyed = False

    def broadcast(self, tensor: torch.Tensor, src: int, stream: None = None) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = src
        work = self._gloo.broadcast([tensor.reshape(-1).view(torch.uint8)], options)
        while not work.is_completed():
            if self._destroyed:
                raise RuntimeError("aborted")
            time.sleep(0.0005)
        work.wait()

    def destroy(self) -> None:
        self._destroyed = True


def use_gloo(patch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import pynccl

    patch.setattr(pynccl, "PyNcclCommunicator", GlooCommunicator)
