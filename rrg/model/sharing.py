"""Completions that share their prompts: all tokens in one row, every prompt once, and the attention for such a row.

Contract: a row holds the prompts, one after the other, then what is read of the completions (all but their last
tokens). Nothing in it is padding, so that the matrix products do no work in vain, and the tokens of a prompt are
computed once however many completions it has. Only attention, a small part of the work, is computed apart and padded:
the prompts among themselves, then each completion to its prompt and itself. A language model takes such a row when
`share_prompts` gave it this attention, with the `Layout` as an argument; without one it is PyTorch's own (sdpa).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Families that are tested: every layer mixes tokens by attention alone, as transformers' interface hands it over.
_FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2"})
_ATTENTION: Final = "sdpa_shared_prompts"


@dataclass(frozen=True)
class Layout:
    """Where things are in a row of N tokens, for S prompts of at most P tokens and B completions of at most R read
    tokens. Places of padding are 0.

    `prompts` [S, P], `completions` [B, R] and `keys` [B, P + R] are places in the row; `back` [N] are the places of
    the row's tokens in `prompts`, flat, and after them in `completions`. `positions` [1, N] count from each prompt's
    start. `mask` [B, 1, R, P + R]: which keys a completion's token sees. `key_positions` [B, P + R].
    """

    prompts: Tensor
    completions: Tensor
    keys: Tensor
    back: Tensor
    positions: Tensor
    mask: Tensor
    key_positions: Tensor

    @staticmethod
    def of(prompt: Tensor, read: Tensor, study: Tensor) -> Layout:
        """`prompt` bool [S, P] and `read` bool [B, R] are true where a token is, from the left; `study` int64 [B] is
        the prompt of each completion."""
        prompts = (prompt.flatten().cumsum(0) - 1).view(prompt.shape) * prompt
        completions = (prompt.sum() + read.flatten().cumsum(0) - 1).view(read.shape) * read
        steps = torch.arange(read.shape[1], device=read.device)
        at = torch.arange(prompt.shape[1], device=read.device).expand(prompt.shape)
        then = prompt.sum(-1)[study, None] + steps
        seen = read[:, None] & (steps <= steps[:, None])
        return Layout(
            prompts=prompts,
            completions=completions,
            keys=torch.cat([prompts[study], completions], dim=1),
            back=torch.cat([prompt.flatten(), read.flatten()]).nonzero()[:, 0],
            positions=torch.cat([at[prompt], then[read]])[None],
            mask=torch.cat([prompt[study, None].expand(-1, len(steps), -1), seen], dim=2)[:, None],
            key_positions=torch.cat([at[study], then], dim=1),
        )


def share_prompts(llm: PreTrainedModel) -> None:
    """Lets `llm` take rows with a `Layout`, where its family can."""
    if shares_prompts(llm):
        llm.set_attn_implementation(_ATTENTION)


def shares_prompts(llm: PreTrainedModel) -> bool:
    """Whether the family of `llm` can take rows with a `Layout`."""
    return llm.config.model_type in _FAMILIES


def last_states(llm: PreTrainedModel, row: Tensor, layout: Layout) -> Tensor:
    """The last hidden states [N, H] of a row of embeddings [N, H]."""
    # A mask of four dimensions is handed to the attention as it is.
    output = llm.base_model(
        inputs_embeds=row[None],
        position_ids=layout.positions,
        attention_mask=layout.mask,
        use_cache=False,
        layout=layout,
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def take(rows: Tensor, places: Tensor) -> Tensor:
    """`rows`[`places`], for rows [N, W]; its backward pass adds up in parallel, and in a fixed order on a GPU too."""
    return F.embedding(places, rows)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: queries [1, heads, N, D], keys and values -> [1, N, heads, D]."""
    if layout is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return whole
    size = query.shape[-1]
    queries, keys, values = (states[0].transpose(0, 1).flatten(1) for states in (query, key, value))

    def heads(rows: Tensor, places: Tensor) -> Tensor:
        return take(rows, places).view(*places.shape, -1, size).transpose(1, 2)

    prompt_mask, mask = None, layout.mask
    if sliding_window is not None and sliding_window < mask.shape[-1]:
        prompt_mask = _band(layout.prompts.shape[1], sliding_window, mask.device)
        distances = layout.key_positions[:, -mask.shape[2] :, None] - layout.key_positions[:, None]
        mask = mask & (distances < sliding_window)[:, None]
    prompts, _ = sdpa_attention_forward(
        module, *(heads(rows, layout.prompts) for rows in (queries, keys, values)), prompt_mask, **settings
    )
    completions, _ = sdpa_attention_forward(
        module, heads(queries, layout.completions), heads(keys, layout.keys), heads(values, layout.keys), mask,
        **settings,
    )  # fmt: skip
    padded = torch.cat([prompts.flatten(0, 1).flatten(1), completions.flatten(0, 1).flatten(1)])
    return take(padded, layout.back).view(1, len(layout.back), -1, size), None


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """A causal mask [length, length] of the last `window` tokens."""
    whole = torch.ones(length, length, dtype=torch.bool, device=device)
    return whole.tril().triu(1 - window)


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
