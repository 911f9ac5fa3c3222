"""The backends: one module each, imported only when it is asked for."""

from __future__ import annotations

from reward_server.errors import RewardSetupError
from reward_server.scorer import Scorer, ScorerOptions

BACKENDS = ("embedded",)


def create_scorer(options: ScorerOptions) -> Scorer:
    """Loads a backend; RewardSetupError for an unknown name or missing weights. Imports torch."""
    if options.backend == "embedded":
        from reward_server.backends.embedded import EmbeddedScorer

        return EmbeddedScorer()
    raise RewardSetupError(f"unknown reward backend {options.backend!r}: choose one of {', '.join(BACKENDS)}")
