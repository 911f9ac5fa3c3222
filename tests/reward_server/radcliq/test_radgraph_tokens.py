"""Reports are cut into words as the package `radgraph` cuts them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from radgraph.utils import preprocess_reports

from benchmarks.radgraph_archive import BACKBONE
from benchmarks.reports import Pair
from reward_server.radcliq.radgraph.tokens import WordPieces, split_marks, split_runs


@pytest.fixture
def texts(pairs: list[Pair], nasty_pairs: list[Pair]) -> Iterator[str]:
    draw = random.Random(8)
    letters = "ab Z9 ./:,-;!?()%'\"\\nfu2122 \n\t\x1c\x85\u00a0é心🫁_`\u0301\u0903\u200b\ufeff"
    reports = [text for pair in (*pairs, *nasty_pairs) for text in pair]
    return iter(reports + ["".join(draw.choice(letters) for _ in range(draw.randint(0, 30))) for _ in range(5000)])


def test_the_words_of_radgraph_are_the_packages(texts: Iterator[str]) -> None:
    for text in texts:
        assert list(split_marks(text)) == preprocess_reports([text], "radgraph")[0]["sentences"][0], text


def test_the_words_of_radgraph_xl_are_the_packages(texts: Iterator[str]) -> None:
    for text in texts:
        assert list(split_runs(text)) == preprocess_reports([text], "radgraph-xl")[0]["sentences"][0], text


def test_hyphens_and_semicolons_split_in_radgraph_xl_only() -> None:
    text = "Left-sided tube;no PTX(unchanged)."
    assert split_marks(text) == ("Left-sided", "tube;no", "PTX", "(", "unchanged", ")", ".")
    assert split_runs(text) == ("Left", "-", "sided", "tube", ";", "no", "PTX", "(", "unchanged", ")", ".")


def test_word_pieces_are_those_of_each_word_alone(mini_weights: Path) -> None:
    pieces = WordPieces(mini_weights / BACKBONE)
    words = ["edema", "Edema", "pneumothoraces", "\u200b", "x" * 300, "edema", "[SEP]"]
    found = pieces(words)
    assert found == [WordPieces(mini_weights / BACKBONE)([word])[0] for word in words] == pieces(words)
    assert found[0] == found[1] == found[5]  # the tokenizer lowers the case
    assert found[3] == ()
    assert found[6] == (pieces.last,)
    assert pieces([]) == []


def test_the_reader_drops_the_slash_of_two_marks(mini_weights: Path) -> None:
    pieces = WordPieces(mini_weights / BACKBONE)
    assert pieces(["/.", "/?"]) == pieces([".", "?"])
