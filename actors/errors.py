"""What can go wrong in a rollout actor. Importable without torch."""

from __future__ import annotations


class EngineError(RuntimeError):
    """The engine cannot go on; its owner has to replace it."""


class PromptError(ValueError):
    """A prompt that would harm the engine or not fit; nothing of it was used."""


class WeightsError(RuntimeError):
    """A version of the weights that is incomplete, not finite or not what its publisher computed."""
