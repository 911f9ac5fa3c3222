"""The backends: one module each, imported only when it is asked for."""

from __future__ import annotations

from reward_server.errors import RewardSetupError
from reward_server.scorer import Scorer, ScorerOptions

BACKENDS = ("embedded", "published", "reference")


def create_scorer(options: ScorerOptions) -> Scorer:
    """Loads a backend; RewardSetupError for an unknown name or missing weights. Imports torch."""
    if options.backend == "embedded":
        from reward_server.backends.embedded import EmbeddedScorer

        return EmbeddedScorer()
    if options.backend == "published":
        from reward_server.backends.published import PublishedScorer

        return PublishedScorer(options)
    if options.backend == "reference":
        from reward_server.backends.reference import ReferenceScorer

        return ReferenceScorer(options)
    raise RewardSetupError(f"unknown reward backend {options.backend!r}: choose one of {', '.join(BACKENDS)}")
