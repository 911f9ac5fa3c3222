"""On the 590 real test reports of Open-i, text measures are those of pycocoevalcap."""

from __future__ import annotations

import random
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from learner.evaluation import metrics, nlg
from learner.evaluation.measures import bleu_statistics
from rrg.data.formats import openi
from rrg.data.sections import clean
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")


@pytest.fixture(scope="module")
def real() -> list[tuple[str, str]]:
    """Each real test report, and the most similar training report of 400, or for every third any other report."""
    records = openi.read_records(openi.find_archive(), ProblemLog(strict=True))
    texts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, _, number in openi.split_ids():
        texts[split].append(clean(records[number].sections["findings"]))
    rng = random.Random(0)
    known = [(set(text.split()), text) for text in rng.sample(texts["train"], 400)]

    def nearest(report: str) -> str:
        words = set(report.split())
        return max(known, key=lambda other: len(words & other[0]) / len(words | other[0]))[1]

    return [(text, nearest(text) if i % 3 else rng.choice(known)[1]) for i, text in enumerate(texts["test"])]


def sides(pairs: list[tuple[str, str]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return {i: [ref] for i, (ref, _) in enumerate(pairs)}, {i: [hyp] for i, (_, hyp) in enumerate(pairs)}


def test_bleu_rouge_and_cider_are_those_of_pycocoevalcap(real: list[tuple[str, str]]) -> None:
    assert len(real) == 590
    bleu = Bleu(4).compute_score(*sides(real), verbose=0)[0]
    ours = [statistic.value for statistic in bleu_statistics(real).values()]
    assert ours == pytest.approx(bleu, abs=1e-4)
    assert 0.05 < ours[3] < 0.95
    assert np.mean([metrics.rouge_l(*pair) for pair in real]) == pytest.approx(
        Rouge().compute_score(*sides(real))[0], abs=1e-4
    )
    assert nlg.cider(real).value == pytest.approx(Cider().compute_score(*sides(real))[0], abs=1e-4)


@needs_java
def test_meteor_of_the_corpus_and_of_every_report_is_that_of_pycocoevalcap(real: list[tuple[str, str]]) -> None:
    counts = nlg.meteor_counts(real)
    assert counts is not None
    corpus, each = Meteor().compute_score(*sides(real))
    assert float(nlg.meteor(counts.sum(axis=0))) == pytest.approx(corpus, abs=1e-4)
    assert nlg.meteor(counts) == pytest.approx(np.array(each), abs=1e-4)


def test_without_java_meteor_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nlg.meteor_counts([("a b", "a b")]) is None


@pytest.mark.parametrize(
    ("program", "message"), [("exec sleep 30", "took longer than 0.2 s"), ("exit 3", "failed [(]status 3, 0 of 1")]
)
def test_a_java_program_that_hangs_or_fails_is_an_error_with_the_way_out(
    program: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match=f"{message}.*--no-meteor"):
        nlg.meteor_counts([("a b", "a b")], timeout_s=0.2 if "sleep" in program else 20)


def test_cider_of_empty_texts_is_zero() -> None:
    assert nlg.cider([("", ""), ("", "a b c d")]).value == 0.0
    assert nlg.cider([("the heart is large .", ""), ("lungs are clear .", "lungs are clear .")]).value == 5.0
