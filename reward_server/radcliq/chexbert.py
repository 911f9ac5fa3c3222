"""CheXbert: a report's embedding (for RadCliQ's similarity) and its 14 labels.

Contract: the text is prepared and cut as `CXR-Report-Metric` does: white space collapsed, at most 512 word pieces with
`[SEP]` as the last; the embedding is the last layer's `[CLS]`, without the pooler. An empty report is `[CLS] [SEP]`.
Sources: Smit et al. 2020, CheXbert (arXiv:2004.09167); Yu et al. 2023, `CXR-Report-Metric`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.errors import RewardSetupError
from reward_server.radcliq.encoder import PackedEncoder
from reward_server.radcliq.pretrained import encoder_config, load_tokenizer
from reward_server.radcliq.weights import load_tensors
from reward_server.text.labels import LABELS, POSITIVE


@dataclass(frozen=True)
class ReportLabels:
    """`embedding`: [hidden], float32. `classes`: one for each of `LABELS`, which is the order of the heads.

    Blank, positive, negative or uncertain; "No Finding" is one of the first two.
    """

    embedding: Tensor
    classes: tuple[int, ...]

    @property
    def positive(self) -> frozenset[str]:
        """The findings that are stated to be there, "No Finding" left out."""
        named = zip(LABELS[:-1], self.classes[:-1], strict=True)
        return frozenset(condition for condition, label in named if label == POSITIVE)


class CheXbert:
    """Embeds and labels reports. `weights`: `chexbert.pth`; `bert`: the folder of `bert-base-uncased`."""

    def __init__(self, weights: Path, bert: Path, device: str, dtype: torch.dtype) -> None:
        """Raises RewardSetupError where a file or a tensor is missing or has another shape."""
        self._tokenizer = load_tokenizer(bert)
        config = encoder_config(bert)
        # Trained under DataParallel, which puts "module." before every name.
        tensors = {name.removeprefix("module."): tensor for name, tensor in load_tensors(weights).items()}
        try:
            self._encoder = PackedEncoder.from_tensors(tensors, config, prefix="bert.", device=device, dtype=dtype)
        except RewardSetupError as error:
            raise RewardSetupError(f"{weights}: {error}") from error
        self._heads: list[tuple[Tensor, Tensor]] = []
        for i in range(len(LABELS)):
            name = f"linear_heads.{i}"
            if f"{name}.weight" not in tensors or f"{name}.bias" not in tensors:
                raise RewardSetupError(f"{weights}: the checkpoint has no tensors {name}.weight and {name}.bias")
            self._heads.append((tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()))

    @torch.inference_mode()
    def label(self, reports: Sequence[str]) -> list[ReportLabels]:
        """The embedding and the labels of every report."""
        states = self._encoder.encode([self._ids(report) for report in reports], first_only=True)
        found = []
        for state in states:
            embedding = state[0].float().cpu()
            classes = tuple(int(F.linear(embedding, weight, bias).argmax()) for weight, bias in self._heads)
            found.append(ReportLabels(embedding, classes))
        return found

    def _ids(self, report: str) -> list[int]:
        text = re.sub(r"\s+", " ", report).strip()
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True, verbose=False)
        longest = self._encoder.max_length
        return ids if len(ids) <= longest else [*ids[: longest - 1], self._tokenizer.sep_token_id]


def similarity(reference: ReportLabels, hypothesis: ReportLabels) -> float:
    """The cosine of two reports' embeddings, in [-1, 1]."""
    return float(F.cosine_similarity(reference.embedding.double(), hypothesis.embedding.double(), dim=0))


def positive_f1(reference: ReportLabels, hypothesis: ReportLabels) -> float:
    """F1 of the conditions stated to be there; 1 if neither report has any."""
    expected, stated = reference.positive, hypothesis.positive
    both = len(expected) + len(stated)
    return 2 * len(expected & stated) / both if both else 1.0
