"""BERTScore (Zhang et al. 2020) that looks at order and at contradictions.

Contract: pure functions of two encoded reports. Plain BERTScore compares single word pieces, so that a word salad of
the reference gets nearly all, and its encoder hardly sees negation and sides. Here

- the similarity of two pieces is averaged with that of their left and their right neighbours, so order counts;
- words that carry opposite status (a finding present here and absent there, "normal" against "enlarged") or opposite
  sides have similarity 0;
- punctuation weighs nothing, as the special pieces do.

No idf; F1 is rescaled by a baseline as in the original: b -> 0, 1 -> 1, and cut at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from reward_server.text.encoder import Encoding
from reward_server.text.statements import Statement, Status
from reward_server.text.words import Word

# What chance gives: mean F of Open-i findings against general English text (0.356 over 240 pairs).
BASELINE = 0.36
_SIGN = {Status.PRESENT: 1.0, Status.ABSENT: -1.0, Status.UNCERTAIN: 0.0}
# Rows of the similarity that are held at a time: with 16,000 characters a whole one takes gigabytes.
_ROWS = 1024
_SIDES = {"left": -1.0, "right": 1.0}


@dataclass(frozen=True)
class Marked:
    """A sentence or report for matching.

    `vectors` [n, hidden]; `marks` [2, n]: status and side of every piece, each -1, 0 or 1; `weighed` [k]: the places of
    the pieces that count.
    """

    vectors: torch.Tensor
    marks: torch.Tensor
    weighed: torch.Tensor


def mark(encoding: Encoding, sentence: Sequence[Word], statements: Sequence[Statement]) -> Marked:
    """Gives the pieces of a sentence the marks of the words that they belong to."""
    status = {i: _SIGN[statement.status] for statement in statements for i in statement.words}
    side = {i: _SIDES[word.base] for i, word in enumerate(sentence) if word.base in _SIDES}
    owner = [
        next((i for i, w in enumerate(sentence) if w.start <= a < w.end), None) if b > a else None
        for a, b in encoding.offsets
    ]
    marks = torch.tensor([[table.get(i, 0.0) if i is not None else 0.0 for i in owner] for table in (status, side)])
    weighed = [n for n, i in enumerate(owner) if i is not None and sentence[i].base[0].isalnum()]
    return Marked(encoding.vectors, marks, torch.tensor(weighed, dtype=torch.long))


def join(parts: Sequence[Marked]) -> Marked:
    """The sentences of a report one after the other."""
    starts = torch.tensor([0, *(len(part.vectors) for part in parts)]).cumsum(0)
    return Marked(
        torch.cat([part.vectors for part in parts]),
        torch.cat([part.marks for part in parts], dim=1),
        torch.cat([part.weighed + start for part, start in zip(parts, starts, strict=False)]),
    )


def raw_f1(reference: Marked, hypothesis: Marked) -> float:
    """F1 before rescaling; both must have weighed pieces."""
    blocks = list(_matched(reference, hypothesis))
    precision = torch.cat([block.max(dim=1).values for block in blocks]).mean().item()
    recall = torch.stack([block.max(dim=0).values for block in blocks]).amax(dim=0).mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _matched(reference: Marked, hypothesis: Marked) -> Iterator[torch.Tensor]:
    """How alike the weighed pieces are: [of the hypothesis, a block at a time; of the reference]."""
    for start in range(0, len(hypothesis.vectors) - 2, _ROWS):
        weighed = hypothesis.weighed - 1 - start
        weighed = weighed[(weighed >= 0) & (weighed < _ROWS)]
        if not len(weighed):
            continue
        part = slice(start, start + _ROWS + 2)
        similarity = hypothesis.vectors[part] @ reference.vectors.T
        for mine, theirs in zip(hypothesis.marks, reference.marks, strict=True):
            similarity = similarity.masked_fill(torch.outer(mine[part], theirs) < 0, 0.0)
        # The special pieces at both ends of every sentence are the neighbours of its first and last piece.
        inner = (similarity[:-2, :-2] + similarity[1:-1, 1:-1] + similarity[2:, 2:]) / 3
        yield inner[weighed][:, reference.weighed - 1]


def bertscore(reference: Marked | None, hypothesis: Marked | None) -> float:
    """Rescaled F1 in [0, 1]; None stands for a report without words: 1 for two of them, 0 for one."""
    if reference is None or hypothesis is None:
        return float(reference is hypothesis)
    return min(1.0, max(0.0, (raw_f1(reference, hypothesis) - BASELINE) / (1 - BASELINE)))
