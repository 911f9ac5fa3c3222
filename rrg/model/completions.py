"""What is told of completions, and what a language model knows where it chooses their tokens: the states that predict
them.

Contract: each completion follows its prompt without a gap, and only its tokens' states are given. Prompts and
completions are padded on the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rrg.model.sharing import Layout, last_states, take


@dataclass(frozen=True)
class Completion:
    """What is told of completions, [B, T], 0 where there is no token: `logprobs` and `entropy`, and with a value head
    `values`, each of the state in which the token was chosen."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None


def states_of_each(llm: PreTrainedModel, prompts: Tensor, lengths: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The states [M, H] that predict `ids`[`mask`], completions [B, T] of prompts [B, P, H] with `lengths` [B] tokens:
    one row of the batch for each."""
    start = lengths[:, None]
    end = start + mask.sum(-1, keepdim=True) - 1  # the last token is predicted, never read
    place = torch.arange(int(end.max()), device=ids.device)
    inputs = prompts.new_zeros(len(ids), len(place), prompts.shape[2])
    prompt_places = torch.arange(prompts.shape[1], device=ids.device) < start
    inputs = inputs.masked_scatter((place < start)[..., None], prompts[prompt_places])
    read = _read(mask)
    follows = (place >= start) & (place < end)
    inputs = inputs.masked_scatter(follows[..., None], llm.get_input_embeddings()(ids[read]))
    states: Tensor = llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    predicts = (place >= start - 1) & (place < end)
    return states[predicts]


def states_of_groups(
    llm: PreTrainedModel, prompts: Tensor, lengths: Tensor, counts: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """The same where `counts` [S] completions in a row have each of the prompts [S, P, H], which are read once
    (`rrg.model.sharing`)."""
    study = torch.arange(len(counts), device=ids.device).repeat_interleave(counts)
    prompt = torch.arange(prompts.shape[1], device=ids.device) < lengths[:, None]
    # One column at least: a query of no tokens is no attention.
    read = _read(mask)[:, : max(1, mask.shape[1] - 1)]
    layout = Layout.of(prompt, read, study)
    embedded = llm.get_input_embeddings()(ids[:, : read.shape[1]][read])
    states = last_states(llm, torch.cat([prompts[prompt], embedded]), layout)
    # The first token of a completion is told where its prompt ends, each other one by the token before it.
    ends = layout.prompts.gather(1, lengths[:, None] - 1)[study]
    return take(states, torch.cat([ends, layout.completions], dim=1)[:, : mask.shape[1]][mask])


def _read(mask: Tensor) -> Tensor:
    """Which tokens of completions are read: all but each one's last."""
    return mask & (mask.cumsum(-1) < mask.sum(-1, keepdim=True))
