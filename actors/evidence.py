"""Region sentences by the rollout engine: the evidence (`rrg.model.evidence`) that goes with greedy reports.

Contract: the language model reads one region's token and the caption instruction, nothing else of the image. A
sentence that fails is missing from the evidence, its study goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from actors.engine import RolloutEngine
from actors.errors import PromptError
from actors.samples import Prompt, Sampling
from rrg.model.evidence import Evidence, read_evidence, with_sentences, worth_a_sentence

if TYPE_CHECKING:
    from rrg.data.study import Study
    from rrg.model.extractor import RegionOutput
    from rrg.model.policy import ReportPolicy

SENTENCE_TOKENS: Final = 32
"""The longest sentence of a region, the end token included."""


@dataclass(frozen=True)
class Draft:
    """The evidence of a study before its sentences, and the prompts [P, hidden] that ask for them, by region."""

    evidence: Evidence
    prompts: dict[int, npt.NDArray[np.float32]]


@torch.no_grad()
def draft_evidence(policy: ReportPolicy, study: Study, seen: RegionOutput) -> Draft:
    """What `seen`, the extractor's output for this study alone, tells; keeps none of its tensors."""
    evidence = read_evidence(policy, study, seen)
    regions = worth_a_sentence(evidence)
    if not regions:
        return Draft(evidence, {})
    rows = torch.tensor(regions, device=policy.device)
    embeds = policy.caption_embeds(seen, torch.zeros_like(rows), rows).float().cpu().numpy()
    return Draft(evidence, dict(zip(regions, embeds, strict=True)))


def write_sentences(policy: ReportPolicy, engine: RolloutEngine, drafts: Sequence[Draft]) -> list[Evidence]:
    """The evidence of all drafts with the sentences that the engine's language model writes (greedy)."""
    sampling = Sampling(SENTENCE_TOKENS, policy.eos_token_id, greedy=True)
    places: list[tuple[int, int]] = []
    prompts: list[Prompt] = []
    for index, draft in enumerate(drafts):
        for region, embeds in draft.prompts.items():
            if _fits(engine, embeds):
                places.append((index, region))
                prompts.append(Prompt(embeds, seed=0))
    sentences: list[dict[int, str]] = [{} for _ in drafts]
    for sample in engine.generate(prompts, sampling) if prompts else ():
        if sample.failed is None:
            index, region = places[sample.index]
            sentences[index][region] = policy.decode(sample.token_ids.tolist())
    return [with_sentences(draft.evidence, found) for draft, found in zip(drafts, sentences, strict=True)]


def _fits(engine: RolloutEngine, embeds: npt.NDArray[np.float32]) -> bool:
    try:
        engine.check_prompt(embeds, SENTENCE_TOKENS)
    except PromptError:
        return False
    return True
