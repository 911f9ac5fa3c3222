"""The backends: one module each, imported only when it is asked for."""

from __future__ import annotations

from reward_server.errors import RewardSetupError
from reward_server.scorer import Scorer

BACKENDS = ("embedded",)


def create_scorer(backend: str) -> Scorer:
    """Loads a backend by name; RewardSetupError for an unknown name or missing weights. Imports torch."""
    if backend == "embedded":
        from reward_server.backends.embedded import EmbeddedScorer

        return EmbeddedScorer()
    raise RewardSetupError(f"unknown reward backend {backend!r}: choose one of {', '.join(BACKENDS)}")
