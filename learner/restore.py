"""Putting a DeepSpeed checkpoint of what is trained back into a policy."""

from __future__ import annotations

from torch import Tensor, nn

from rrg.errors import UserError


def load_trained(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Loads `src` into `dst`; what is frozen in `dst` came with the policy and may be missing.

    Raises UserError where `src` lacks something that `dst` trains, or has something that `dst` does not know.
    """
    lacking = sorted({name for name, value in dst.named_parameters() if value.requires_grad} - src.keys())
    if lacking:
        raise UserError(f"the checkpoint lacks {len(lacking)} trained tensors, the first is {lacking[0]}")
    unknown = dst.load_state_dict(src, strict=False).unexpected_keys
    if unknown:
        raise UserError(f"the checkpoint has {len(unknown)} tensors that the policy has not, the first is {unknown[0]}")
