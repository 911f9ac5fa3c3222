"""Which way a measure is better, by its name."""

from __future__ import annotations

from typing import Final

from reward_server.spec import COMPOSITES

_REWARDS: Final = {"reward", "reward_abnormal", "shuffle_gap"}
_FINDINGS: Final = {"finding_precision", "finding_recall", "finding_f1"}
_TEXT: Final = {"bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "meteor"}
_RADGRAPH: Final = {
    "radgraph", "radgraph_entity", "radgraph_relation", "radgraph_simple", "radgraph_partial", "radgraph_complete",
}  # fmt: skip
_COMPONENTS: Final = {
    "bertscore", "graph_f1", "label_similarity", "positive_f1", "radcliq_v1_inverse", "reward_bleu2", "semb",
    *_RADGRAPH,
}  # fmt: skip
_HIGHER: Final = _REWARDS | _FINDINGS | _TEXT | _COMPONENTS
_LOWER: Final = {"length", "repetition", "reward_repetition", "radcliq_v1", "radcliq_v0", *COMPOSITES.values()}


def direction(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where that depends (words) or nobody has said."""
    if name in _HIGHER or name.startswith("labels"):
        return 1
    return -1 if name in _LOWER else 0


def arrow(name: str) -> str:
    """The direction as a mark behind a name: " ↑", " ↓" or nothing."""
    return {1: " ↑", -1: " ↓", 0: ""}[direction(name)]
