"""The report policy of LM-RRG: region extractor and causal language model, one after the other.

Contract: the prompt of a study is made of embeddings: its visual tokens (global tokens, then region tokens) at the
place that the prompt's template gives them, and the embedded instruction around them. `state_dict()` has the keys
`extractor.*`, `llm.*` and, where the backbone is trained, `backbone.*`; the `llm.*` names are Hugging Face's. A
learner may give it a `value_head`, which is neither saved with the policy nor exported.
Sequences are padded on the right, so causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from configs.schema import RolloutConfig
from rrg.canary import Canary
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.backbone import ImageStore
from rrg.model.canary import extractor_canary, take_canary
from rrg.model.completions import Completion, states_of_each, states_of_groups
from rrg.model.extractor import RegionExtractor, RegionOutput
from rrg.model.features import ImageBatch, PixelBatch
from rrg.model.logprobs import token_logprobs
from rrg.model.lora import adapter_state_dict, merged_state_dict
from rrg.model.prompts import IMAGE, PAD, PromptBatch, PromptTemplate, collate_prompts
from rrg.model.sharing import shares_prompts
from rrg.model.value import ValueHead
from rrg.model.vision import VisionBackbone


@dataclass(frozen=True)
class PolicyInputs:
    """Images and prompts of B studies."""

    images: ImageBatch
    prompts: PromptBatch

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str) -> PolicyInputs:
        return PolicyInputs(self.images.to(device), self.prompts.to(device))


@dataclass(frozen=True)
class CaptionBatch:
    """Sentences of M regions: `study` int64 [M] is a row of the batch, `region` int64 [M] a region of the policy;
    `ids` int64 and `mask` bool [M, T] are the sentences."""

    study: Tensor
    region: Tensor
    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> CaptionBatch:
        return CaptionBatch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class PolicyOutput:
    """What one forward pass gives. `embeds` [B, P, H] are the prompts, `lengths` [B] their tokens; `logprobs`,
    `entropy` and (with a value head) `values` [B, T], and `caption_logprobs` [M, T], are None where no completion or no
    caption was given."""

    regions: RegionOutput
    embeds: Tensor
    lengths: Tensor
    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    caption_logprobs: Tensor | None = None
    values: Tensor | None = None


class ReportPolicy(nn.Module):
    """`region_descriptions` (name -> text) and `findings` name what the extractor's rows and columns stand for.

    `backbone` is None where it is frozen: then images come as the features that it gave once.
    """

    def __init__(
        self,
        extractor: RegionExtractor,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptTemplate,
        region_descriptions: Mapping[str, str],
        findings: Sequence[str],
        backbone: VisionBackbone | None = None,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.llm = llm
        self.backbone = backbone
        self.value_head: ValueHead | None = None
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.region_descriptions = dict(region_descriptions)
        self.findings = tuple(findings)
        self.hidden_size: int = extractor.shape.hidden
        self.vocab_size: int = llm.config.vocab_size
        self.visual_tokens: int = extractor.shape.global_tokens + extractor.shape.regions
        self.eos_token_id: int = tokenizer.eos_token_id
        self.pad_token_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.caption_ids: Tensor
        ids = torch.tensor(prompt.caption_tokens(tokenizer), dtype=torch.long)
        self.register_buffer("caption_ids", ids, persistent=False)

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(self.region_descriptions)

    @property
    def shares_prompts(self) -> bool:
        """Whether completions of a study are computed with its prompt once, without padding."""
        return shares_prompts(self.llm)

    @property
    def device(self) -> torch.device:
        return self.caption_ids.device

    def inputs(self, studies: Sequence[Study], store: ImageStore) -> PolicyInputs:
        """Images and prompts of some studies, on the CPU."""
        return PolicyInputs(store.load_batch(studies), collate_prompts([self.prompt_tokens(s) for s in studies]))

    def prompt_tokens(self, study: Study) -> list[int]:
        return self.prompt.tokens(self.tokenizer, study, self.visual_tokens)

    def check_room(self, rollout: RolloutConfig) -> None:
        """Raises UserError unless the longest prompt that can come, and a report, fit into the rollout engines and into
        the language model's positions."""
        prompt = self.prompt.most_tokens(self.tokenizer, self.visual_tokens)
        need = prompt + rollout.max_new_tokens
        what = (
            f"a prompt can have {prompt} tokens ({self.visual_tokens} of them visual), and a report "
            f"rollout.max_new_tokens={rollout.max_new_tokens}"
        )
        if need > rollout.max_model_len:
            raise UserError(
                f"rollout.max_model_len={rollout.max_model_len} is too small: {what}; set it to {need} or more, or "
                "lower model.prompt.max_context_tokens"
            )
        positions: int = self.llm.config.max_position_embeddings
        if rollout.max_model_len > positions:
            limit = f"the language model has {positions} positions"
            raise UserError(f"rollout.max_model_len={rollout.max_model_len}: {limit}")

    def forward(
        self,
        inputs: PolicyInputs,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        counts: Tensor | None = None,
        captions: CaptionBatch | None = None,
        entropy_gradient: bool = False,
    ) -> PolicyOutput:
        """The one entrance for wrappers such as a DeepSpeed engine.

        `ids` and `mask` are completions [., T], one of each study or `counts` [B] of each in a row: the extractor runs
        once a study. `regions` and `embeds` of the answer have one row a study.
        """
        regions = self.extract(inputs.images)
        embeds, lengths = self.prompt_embeds(regions, inputs.prompts)
        output = PolicyOutput(regions, embeds, lengths)
        if ids is not None and mask is not None:
            told = self.completion_logprobs(embeds, lengths, ids, mask, temperature, entropy_gradient, counts)
            output = replace(output, logprobs=told.logprobs, entropy=told.entropy, values=told.values)
        if captions is not None:
            prompt = self.caption_embeds(regions, captions.study, captions.region)
            whole = lengths.new_full((len(prompt),), prompt.shape[1])
            told = self.completion_logprobs(prompt, whole, captions.ids, captions.mask)
            output = replace(output, caption_logprobs=told.logprobs)
        return output

    def extract(self, images: ImageBatch) -> RegionOutput:
        """What the extractor sees. Raises ValueError where pixels meet a frozen backbone, or features a trained one."""
        if isinstance(images, PixelBatch) != (self.backbone is not None):
            raise ValueError("a policy with a backbone of its own takes a PixelBatch, any other a FeatureBatch")
        features = self.backbone(images) if self.backbone is not None else images
        output: RegionOutput = self.extractor(features)
        return output

    def prompt_embeds(self, output: RegionOutput, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """The prompts as embeddings [B, P, H], zero behind their ends, and their lengths [B].

        Raises UserError where a prompt does not hold exactly the places of the visual tokens.
        """
        tokens = prompts.tokens
        visual = torch.cat([output.global_tokens, output.gated_tokens()], dim=1)
        places = tokens == IMAGE
        counts = places.sum(-1)
        if not bool((counts == visual.shape[1]).all()):
            raise UserError(
                f"prompts with {counts.tolist()} places for visual tokens, and {visual.shape[1]} visual tokens a study"
            )
        embeds = self.llm.get_input_embeddings()(tokens.clamp_min(0))
        embeds = embeds.masked_fill((tokens == PAD)[..., None], 0.0)
        return embeds.masked_scatter(places[..., None], visual.to(embeds.dtype)), prompts.lengths

    def caption_embeds(self, output: RegionOutput, study: Tensor, region: Tensor) -> Tensor:
        """The prompts of regions' captions, [M, 1 + caption tokens, H]: a region's token and nothing else of the image.

        `study` and `region` int64 [M] choose rows of `output`.
        """
        instruction = self.llm.get_input_embeddings()(self.caption_ids)
        token = output.gated_tokens()[study, region].to(instruction.dtype)
        return torch.cat([token[:, None], instruction.expand(len(token), -1, -1)], dim=1)

    def completion_logprobs(
        self,
        prompt_embeds: Tensor,
        prompt_lengths: Tensor,
        ids: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        counts: Tensor | None = None,
    ) -> Completion:
        """Log-probabilities and entropies [B, T] of completions `ids`, `mask` [B, T] after prompts [B, P, H] of
        `prompt_lengths` [B] tokens; 0 where `mask` is False. The entropy carries a gradient where it is asked for.

        With `counts` [B] there are so many completions, in a row, of each prompt, which is then read once for all of
        them where the language model's family allows it.
        """
        if counts is None:
            told = states_of_each(self.llm, prompt_embeds, prompt_lengths, ids, mask)
        elif self.shares_prompts:
            told = states_of_groups(self.llm, prompt_embeds, prompt_lengths, counts, ids, mask)
        else:
            embeds, lengths = prompt_embeds.repeat_interleave(counts, 0), prompt_lengths.repeat_interleave(counts)
            told = states_of_each(self.llm, embeds, lengths, ids, mask)
        head = self.llm.get_output_embeddings()
        logprobs, entropy = token_logprobs(told, head, ids[mask], temperature, entropy_gradient)
        empty = logprobs.new_zeros(ids.shape)
        return Completion(
            logprobs=empty.masked_scatter(mask, logprobs),
            entropy=empty.masked_scatter(mask, entropy),
            values=None if self.value_head is None else empty.masked_scatter(mask, self.value_head(told)),
        )

    def study_prompt(self, study: Study, store: ImageStore) -> tuple[npt.NDArray[np.float32], RegionOutput]:
        """The prompt embeds [P, H] of one study alone, so that they do not depend on others, and what was seen."""
        return self.prompt_of(study, store.load_batch([study]))

    @torch.no_grad()
    def prompt_of(self, study: Study, images: ImageBatch) -> tuple[npt.NDArray[np.float32], RegionOutput]:
        """`study_prompt` where the study's images (a batch of one) are loaded already."""
        prompts = collate_prompts([self.prompt_tokens(study)])
        inputs = PolicyInputs(images, prompts).to(self.device)
        regions = self.extract(inputs.images)
        embeds, _ = self.prompt_embeds(regions, inputs.prompts)
        return embeds[0].float().cpu().numpy(), regions

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
        if not self.region_descriptions:
            return
        ids, mask = self.tokenize(list(self.region_descriptions.values()), max_tokens=128)
        ids, mask = ids.to(self.device), mask.to(self.device)
        states = self.llm.base_model(input_ids=ids, use_cache=False).last_hidden_state.float()
        weights = mask[..., None].float()
        self.extractor.region_queries.copy_((states * weights).sum(1) / weights.sum(1))

    def export_tensors(self, broadcast: str = "merged") -> dict[str, Tensor]:
        """The weights as rollout actors take them: `extractor.*`, `backbone.*` if it is trained, and of the LLM `llm.*`
        (adapters merged, Hugging Face's names) or, where `broadcast` is "adapter", its LoRA alone, `adapter.*`."""
        parts = {"extractor": self.extractor.state_dict()}
        if broadcast == "adapter":
            parts["adapter"] = adapter_state_dict(self.llm)
        else:
            parts["llm"] = merged_state_dict(self.llm)
        if self.backbone is not None:
            parts["backbone"] = merged_state_dict(self.backbone)
        return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}

    def canary(self) -> Canary:
        """What these weights give on fixed inputs: language model and extractor apart."""
        return take_canary(self)

    def canary_embeds(self) -> npt.NDArray[np.float32]:
        """The extractor's part of `canary` alone, [k, H]; the policy must be in eval mode."""
        return extractor_canary(self)
