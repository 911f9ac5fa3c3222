"""Which pairs can be scored at all, the same in this process and over the network.

Contract: pure; a reason names the field and quotes no report.
"""

from __future__ import annotations

from reward_server.errors import PairError
from reward_server.scorer import Pair


def size_or_error(pair: Pair) -> int | PairError:
    """Bytes of the pair as UTF-8, or why it is no text."""
    size = 0
    for name, text in zip(("reference", "hypothesis"), pair, strict=True):
        if not isinstance(text, str):
            return PairError(f"{name}: must be a string, not {type(text).__name__}")
        try:
            size += len(text.encode())
        except UnicodeEncodeError as error:
            return PairError(f"{name}: not valid Unicode text (a lone surrogate at character {error.start})")
    return size
