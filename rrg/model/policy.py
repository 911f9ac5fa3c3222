"""The report policy of LM-RRG: region extractor and causal language model, one after the other.

Contract: the prompt of a study is made of embeddings only, [global tokens; region tokens; instruction], and is
`prompt_length` long whatever the study. `state_dict()` has the keys `extractor.*` and `llm.*` and nothing else; the
`llm.*` names are Hugging Face's. Completions are padded on the right, so causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from actors.trajectory import Canary
from rrg.model.extractor import RegionExtractor, RegionOutput
from rrg.model.features import FeatureBatch
from rrg.model.logprobs import token_logprobs

_CANARY_TOKENS: Final = 24


@dataclass(frozen=True)
class PolicyOutput:
    """What one forward pass gives: `logprobs` and `entropy` [B, T] are None where no completion was given."""

    regions: RegionOutput
    embeds: Tensor
    logprobs: Tensor | None
    entropy: Tensor | None


class ReportPolicy(nn.Module):
    """`region_descriptions` (name -> text) and `findings` name what the extractor's rows and columns stand for."""

    def __init__(
        self,
        extractor: RegionExtractor,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str,
        region_descriptions: Mapping[str, str],
        findings: Sequence[str],
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.llm = llm
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.region_descriptions = dict(region_descriptions)
        self.findings = tuple(findings)
        self.hidden_size: int = extractor.shape.hidden
        self.vocab_size: int = llm.config.vocab_size
        self.eos_token_id: int = tokenizer.eos_token_id
        self.pad_token_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = tokenizer(instruction, add_special_tokens=False)["input_ids"]
        if tokenizer.bos_token_id is not None:
            ids = [*ids, tokenizer.bos_token_id]
        self.instruction_ids: Tensor
        self.register_buffer("instruction_ids", torch.tensor(ids, dtype=torch.long), persistent=False)
        self.prompt_length: int = extractor.shape.global_tokens + extractor.shape.regions + len(ids)

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(self.region_descriptions)

    def forward(
        self,
        batch: FeatureBatch,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        repeat: int | Tensor = 1,
    ) -> PolicyOutput:
        """The one entrance for wrappers such as a DeepSpeed engine.

        `ids` and `mask` [B * repeat, T] are completions, `repeat` of each study in a row (or `repeat` [B], a number for
        each): the extractor runs once a study. `regions` and `embeds` of the answer have one row a study.
        """
        regions = self.extract(batch)
        embeds = self.prompt_embeds(regions)
        if ids is None or mask is None:
            return PolicyOutput(regions, embeds, None, None)
        prompts = embeds.repeat_interleave(repeat, dim=0)
        return PolicyOutput(regions, embeds, *self.completion_logprobs(prompts, ids, mask, temperature))

    def extract(self, batch: FeatureBatch) -> RegionOutput:
        output: RegionOutput = self.extractor(batch)
        return output

    def prompt_embeds(self, output: RegionOutput) -> Tensor:
        """[B, prompt_length, hidden_size]."""
        instruction = self.llm.get_input_embeddings()(self.instruction_ids)
        visual = torch.cat([output.global_tokens, output.gated_tokens()], dim=1).to(instruction.dtype)
        return torch.cat([visual, instruction.expand(len(visual), -1, -1)], dim=1)

    def completion_logprobs(
        self, prompt_embeds: Tensor, ids: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, T] of completions after prompts [B, P, H]; 0 where `mask` is False.

        Only the positions of real completion tokens go through the output layer.
        """
        length = prompt_embeds.shape[1]
        inputs = torch.cat([prompt_embeds, self.llm.get_input_embeddings()(ids[:, :-1])], dim=1)
        states = self.llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, length - 1 :]
        logprobs, entropy = token_logprobs(states[mask], self.llm.get_output_embeddings(), ids[mask], temperature)
        empty = logprobs.new_zeros(ids.shape)
        return empty.masked_scatter(mask, logprobs), empty.masked_scatter(mask, entropy)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Reports as completions: ids and mask [B, T], the end token last (and kept where a text is cut)."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [torch.tensor([*ids[: max_tokens - 1], self.eos_token_id]) for ids in encoded]
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    @torch.no_grad()
    def refresh_region_queries(self) -> None:
        """Lets the language model encode the region descriptions again: mean of its last hidden states."""
        ids, mask = self.tokenize(list(self.region_descriptions.values()), max_tokens=128)
        ids, mask = ids.to(self.instruction_ids.device), mask.to(self.instruction_ids.device)
        states = self.llm.base_model(input_ids=ids, use_cache=False).last_hidden_state.float()
        weights = mask[..., None].float()
        self.extractor.region_queries.copy_((states * weights).sum(1) / weights.sum(1))

    @torch.no_grad()
    def canary(self) -> Canary:
        """What these weights give on fixed inputs: language model and extractor apart."""
        was_training = self.training
        self.eval()
        tokens = torch.randint(self.vocab_size, (1, _CANARY_TOKENS), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(self.instruction_ids.device)
        first = self.llm.get_input_embeddings()(tokens[:, :1])
        rest = tokens[:, 1:]
        logprobs, _ = self.completion_logprobs(first, rest, torch.ones_like(rest, dtype=torch.bool))
        embeds = self.prompt_embeds(self.extract(canary_features(self)))[0].float()
        self.train(was_training)
        return Canary(tuple(tokens[0].tolist()), logprobs[0].cpu().numpy(), embeds.cpu().numpy())


def canary_features(policy: ReportPolicy) -> FeatureBatch:
    """One study of one frontal image with fixed random features, on the policy's device."""
    shape = policy.extractor.shape
    values = torch.randn(1, shape.grid**2, shape.patch_channels, generator=torch.Generator().manual_seed(0))
    views = torch.zeros(1, shape.grid**2, dtype=torch.long)
    return FeatureBatch(values, views, torch.ones_like(views, dtype=torch.bool)).to(policy.instruction_ids.device)
