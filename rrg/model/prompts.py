"""What the language model is told beside the image: instruction templates, and how they become tokens.

Contract: a prompt holds the place of every visual token, in order. The parts of the context (views, indication,
comparison) are there where the template's config names them and the study has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from configs.schema import PromptConfig
from rrg.data.study import Study

# In place of a token id: where a visual token goes, and what fills a row up at its right end.
IMAGE: Final = -1
PAD: Final = -2

TARGET_WORDS: Final = {"findings": "findings", "impression": "impression", "both": "findings and impression"}


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as `tokens` int64 [B, P]: token ids, `IMAGE` where a visual token goes, `PAD` at the right end."""

    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prompt, visual ones included, int64 [B]."""
        return (self.tokens != PAD).sum(-1)

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(self.tokens.to(device))


def collate_prompts(prompts: Sequence[Sequence[int]]) -> PromptBatch:
    """Fills up to the longest prompt."""
    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    return PromptBatch(pad_sequence(rows, batch_first=True, padding_value=PAD))


@dataclass(frozen=True)
class PromptTemplate:
    """Text with {bos}, {images} (once) and {context}; `context` maps the parts that are wanted to texts with {text}.

    `caption` follows a region's token alone, where the language model is to write that region's sentences. All of them
    may hold {bos} and special tokens by name; a part of the context has at most `max_context_tokens`, template and all.
    """

    text: str
    context: Mapping[str, str]
    max_context_tokens: int
    caption: str

    @staticmethod
    def of(cfg: PromptConfig, target: str) -> PromptTemplate:
        """The template of a checked config (`configs.check`) for `data.target`."""
        parts = {"views": cfg.views, "indication": cfg.indication, "comparison": cfg.comparison}
        return PromptTemplate(
            text=cfg.template.replace("{target}", TARGET_WORDS[target]),
            context={name: parts[name] for name in cfg.context},
            max_context_tokens=cfg.max_context_tokens,
            caption=cfg.caption,
        )

    def tokens(self, tokenizer: PreTrainedTokenizerBase, study: Study, visual_tokens: int) -> list[int]:
        """The prompt of one study: token ids, and `IMAGE` `visual_tokens` times."""
        before, after = self.text.split("{images}")
        context = self._context_ids(tokenizer, study)
        return [*_ids(tokenizer, before, context), *[IMAGE] * visual_tokens, *_ids(tokenizer, after, context)]

    def most_tokens(self, tokenizer: PreTrainedTokenizerBase, visual_tokens: int) -> int:
        """The length of the longest prompt that any study can have."""
        context = [0] * (len(self.context) * self.max_context_tokens)
        before, after = self.text.split("{images}")
        return len(_ids(tokenizer, before, context)) + visual_tokens + len(_ids(tokenizer, after, context))

    def caption_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """What follows a region's token in the prompt of its caption."""
        return _ids(tokenizer, self.caption, [])

    def _context_ids(self, tokenizer: PreTrainedTokenizerBase, study: Study) -> list[int]:
        views = dict.fromkeys(image.view for image in study.images)
        known = {
            "views": ", ".join(views),
            "indication": study.report.indication,
            "comparison": study.report.comparison,
        }
        parts = [_part_ids(tokenizer, part, known[name]) for name, part in self.context.items() if known[name]]
        return [token for part in parts for token in part[: self.max_context_tokens]]


def _part_ids(tokenizer: PreTrainedTokenizerBase, part: str, text: str) -> list[int]:
    """A part of the context with a study's text in the place of {text}.

    Special tokens are such where the template has them; in the text, a report's, a word that looks like one is still
    only a word. The text goes with what stands between it and the next special tokens, for other tokens may well reach
    over the border, as one of the blank before a word and the word does.
    """
    before, after = part.replace("{bos}", tokenizer.bos_token or "").split("{text}")
    special = _special_tokens(tokenizer)
    start = max((found.end() for found in special.finditer(before)), default=0)
    end = min((found.start() for found in special.finditer(after)), default=len(after))
    words = tokenizer(before[start:] + text + after[:end], add_special_tokens=False, split_special_tokens=True)
    return [*_template_ids(tokenizer, before[:start]), *words["input_ids"], *_template_ids(tokenizer, after[end:])]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the special tokens' names, a longer one before one that begins it."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded = tokenizer(text.replace("{bos}", tokenizer.bos_token or ""), add_special_tokens=False)
    return list(encoded["input_ids"])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, context: Sequence[int]) -> list[int]:
    pieces = [_template_ids(tokenizer, piece) for piece in text.split("{context}")]
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += [*context, *piece]
    return ids
