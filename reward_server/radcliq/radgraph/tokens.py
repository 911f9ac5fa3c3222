"""The words of a report, and the word pieces of a word.

Contract: the same words as the package `radgraph` and `CXR-Report-Metric` cut, for every text. Which way a report is
cut belongs to the archive, because its network was trained on such words; the namespace of its vocabulary says it:

- `radgraph` (the package's naming) and `None` (PhysioNet's, whose documents name no data set): marks stand alone. This
  is RadCliQ's definition.
- `radgraph-xl`: runs of letters and runs of marks, as NLTK's `wordpunct_tokenize` cuts them, with a few exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import regex

from reward_server.cache import LRUCache
from reward_server.radcliq.pretrained import load_tokenizer

_CACHED_WORDS = 50_000  # about 200 bytes each
_LONGEST_CACHED = 64  # letters; longer ones are noise and would only fill the memory

# Canonical: the regex of the paper's code has the class "[/,-,:,.,!?()]", in which ",-," is a range from comma to
# comma: the hyphen is not in it, and neither is the semicolon.
_MARK = re.compile(r"([/,:.!?()])")
# NLTK uses the package regex, for which an accent of its own is part of a word and not a mark.
_RUN = regex.compile(r"\w+|[^\w\s]+")
_XL_BEFORE = (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ('\\"', "``"))
_XL_AFTER = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))


def split_marks(report: str) -> tuple[str, ...]:
    """The words of `radgraph`."""
    return tuple(_MARK.sub(r" \1 ", report).split())


def split_runs(report: str) -> tuple[str, ...]:
    """The words of `radgraph-xl`."""
    for old, new in _XL_BEFORE:
        report = report.replace(old, new)
    text = " ".join(_RUN.findall(" ".join(report.split())))
    for old, new in _XL_AFTER:
        text = text.replace(old, new)
    return tuple(text.split())


SPLITTERS: Mapping[str, Callable[[str], tuple[str, ...]]] = MappingProxyType(
    {"radgraph": split_marks, "None": split_marks, "radgraph-xl": split_runs}
)


class WordPieces:
    """The ids of the word pieces of single words, by the tokenizer in `backbone`. Not thread-safe."""

    def __init__(self, backbone: Path) -> None:
        self._tokenizer = load_tokenizer(backbone)
        self._known: LRUCache[tuple[int, ...]] = LRUCache(_CACHED_WORDS)
        self.first: int = self._tokenizer.cls_token_id
        self.last: int = self._tokenizer.sep_token_id

    def __call__(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of every word, none for a word of control characters only."""
        found = {word: self._known.get(word) for word in words}
        new = [word for word, pieces in found.items() if pieces is None]
        for word, pieces in zip(new, self._cut(new) if new else [], strict=True):
            found[word] = pieces
            if len(word) <= _LONGEST_CACHED:
                self._known.put(word, pieces)
        return [found[word] or () for word in words]

    def _cut(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        encoding = self._tokenizer([_as_read(word) for word in words], add_special_tokens=False, verbose=False)
        return [tuple(ids) for ids in encoding["input_ids"]]


def _as_read(word: str) -> str:
    """The word as DyGIE++'s reader gives it to the tokenizer: it drops the slash of two marks of the ACE corpus."""
    return word[1:] if word in ("/.", "/?") else word
