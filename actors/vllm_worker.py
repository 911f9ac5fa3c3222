"""What runs inside vLLM's worker: weights loaded in place, and the KV cache zeroed.

Contract: imported by vLLM from `worker_extension_cls`, before it builds a model; nothing else imports it at module
level (it imports vLLM). vLLM's weight-transfer interface changes between versions: this module and
`actors.engine` are the only ones that know it (vLLM 0.32).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers import utils as layer_utils

from actors.nccl import Arrival, Transfer

TRANSFER_BACKEND = "lmrrg_in_place"


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on: what is needed comes with every update."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """All weights of one version, named as in the Hugging Face checkpoint, or the transfer that brings them."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    transfer: Transfer | None = None


class InPlaceTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Copies the tensors of an update into the live model's parameters."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """There is no connection to open."""

    def start_weight_update(self) -> None:
        """The copy is in place: nothing to prepare."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load every tensor; raises RuntimeError naming the parameters that the update left as they were."""
        if update_info.transfer is None:
            loaded = self.model.load_weights(iter(update_info.tensors.items()))
        else:
            arrival = Arrival(update_info.transfer, 1 + self.parallel_config.rank, self.device)
            loaded = self.model.load_weights(iter(arrival))
            arrival.finish()
        untouched = {name for name, _ in self.model.named_parameters()} - set(loaded)
        if untouched:
            raise RuntimeError(f"the update did not set {len(untouched)} parameters: {sorted(untouched)[:5]}")

    def finish_weight_update(self) -> None:
        """The copy is in place: nothing to finish."""

    def shutdown(self) -> None:
        """There is no connection to close."""


class WorkerExtension:
    """Methods that vLLM adds to its worker; called by name with `collective_rpc`."""

    def zero_kv_cache(self) -> None:
        """Forget everything: a NaN left in a block would reach every later request that is given that block."""
        for cache in self.model_runner.kv_caches:  # type: ignore[attr-defined]
            cache.zero_()


def keep_linear_weights_loadable() -> None:
    """On CPUs, make vLLM multiply with the parameters themselves instead of packed copies of them.

    Stock vLLM packs linear weights into oneDNN handles when the model is built, and drops or ignores the parameters
    from then on: a load in place would fail, or silently leave the old lm_head. Call before the engine is built.
    The speed is the same at batch 128.
    """

    def use_parameter(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = F.linear  # type: ignore[assignment]  # a plain attribute, no submodule

    layer_utils.dispatch_cpu_unquantized_gemm = use_parameter


WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, InPlaceTransfer)
