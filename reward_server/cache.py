"""A bounded cache: the least recently used entry goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class LRUCache(Generic[V]):
    """Maps texts to values as long as their costs add up to at most `size` (default: each costs 1). Not thread-safe."""

    def __init__(self, size: int, cost: Callable[[V], int] = lambda _: 1) -> None:
        self._size, self._cost = size, cost
        self._entries: OrderedDict[str, V] = OrderedDict()
        self._held = 0

    def get(self, key: str) -> V | None:
        """The value, now the most recently used, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, value: V) -> None:
        """Keeps the value; one that costs more than the whole cache is not kept."""
        if key in self._entries:
            self._held -= self._cost(self._entries.pop(key))
        self._entries[key] = value
        self._held += self._cost(value)
        while self._held > self._size:
            self._held -= self._cost(self._entries.popitem(last=False)[1])
