"""The gallery of reward hacks: which orderings hold, and which are known not to."""

from __future__ import annotations

import pytest

from reward_server.gallery import CASES, Entry, hacks, score_gallery
from reward_server.scorer import Scorer
from reward_server.scoring import LocalSource


@pytest.fixture(scope="module")
def entries(scorer: Scorer) -> dict[str, list[Entry]]:
    return score_gallery(LocalSource(scorer))


def rewards(entries: dict[str, list[Entry]], name: str) -> list[float]:
    return [entry.reward for entry in entries[name]]


def penalised(entries: dict[str, list[Entry]], name: str) -> list[float]:
    return [entry.penalised for entry in entries[name]]


def test_every_case_has_every_hack_and_each_is_another_text() -> None:
    for case in CASES:
        assert len(set(hacks(case).values())) == len(hacks(case)) == 13
        assert hacks(case)["sides swapped"].lower().count("left") == case.reference.lower().count("right") > 0


def test_the_reference_itself_is_best_with_either_reward(entries: dict[str, list[Entry]]) -> None:
    for name in entries:
        if name != "reference":
            assert all(r > h for r, h in zip(rewards(entries, "reference"), rewards(entries, name), strict=True))
            assert all(r > h for r, h in zip(penalised(entries, "reference"), penalised(entries, name), strict=True))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("paraphrase", "keyword list"),
        ("paraphrase", "words shuffled"),
        ("paraphrase", "negation flipped"),
        ("paraphrase", "normal template"),
        ("paraphrase", "other patient"),
        ("paraphrase", "empty"),
        ("truncated half", "normal template"),
        ("normal template", "other patient"),
        ("other patient", "empty"),
        ("repeated 2x", "repeated 3x"),
    ],
)
def test_the_composite_orders_these_in_every_case(entries: dict[str, list[Entry]], better: str, worse: str) -> None:
    assert all(b > w for b, w in zip(rewards(entries, better), rewards(entries, worse), strict=True))
    if better != "normal template" or worse != "other patient":
        assert all(b > w for b, w in zip(penalised(entries, better), penalised(entries, worse), strict=True))


# The composite alone falls for these: a reason for the penalties, and for evaluating with other measures.
KNOWN_HOLES = ("repeated 2x", "repeated 3x", "template + reference", "sides swapped")


def test_the_composite_prefers_these_hacks_to_a_paraphrase(entries: dict[str, list[Entry]]) -> None:
    paraphrase = rewards(entries, "paraphrase")
    holes = {
        name
        for name in entries
        if name != "reference" and any(h > p for h, p in zip(rewards(entries, name), paraphrase, strict=True))
    }
    assert holes == {*KNOWN_HOLES, "truncated half"}


def test_penalties_close_the_repetition_and_the_sides(entries: dict[str, list[Entry]]) -> None:
    paraphrase = penalised(entries, "paraphrase")
    for name in ("repeated 2x", "repeated 3x", "sides swapped"):
        assert all(p > h for p, h in zip(paraphrase, penalised(entries, name), strict=True)), name
    # Not closed: a template before the truth costs little, and half of the truth may hold all findings.
    for name in ("template + reference", "truncated half"):
        assert any(h > p for p, h in zip(paraphrase, penalised(entries, name), strict=True)), name
