"""CIDEr and METEOR as `pycocoevalcap` 1.2 computes them, which the field reports.

Contract: texts are the cleaned ones, tokens are what white space separates. CIDEr is that package's own code. METEOR is
its `meteor-1.5.jar` with its options, asked for the counts of every pair in one call with a time-out; the score is made
of their sums here by METEOR 1.5's formula, so that a corpus and its resamples come from the same lines.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from learner.evaluation.bootstrap import Array, Statistic, mean
from rrg.errors import UserError

METEOR_COUNTS: Final = 23
NO_JAVA: Final = "METEOR: no Java (the program `java` is not on the PATH)"
# The jar needs about 10 s to load its paraphrases, then about 1 ms a pair.
_START_S, _PAIR_S = 120.0, 0.1
# METEOR 1.5, English, its default task: alpha, beta, gamma, delta, and the weights of exact, stem, synonym and
# paraphrase matches (Denkowski & Lavie 2014, section 2 and table 1).
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_STAGES: Final = np.array([1.0, 0.6, 0.8, 0.6])

Pair = tuple[str, str]


def cider_scores(pairs: Sequence[Pair]) -> Array:
    """CIDEr of every (reference, hypothesis), [pairs]; the corpus value is the mean.

    Words are weighted by how rare they are among these references, so a pair's value depends on the others: 0 for a
    single pair.
    """
    from pycocoevalcap.cider.cider import Cider

    references = {index: [reference] for index, (reference, _) in enumerate(pairs)}
    hypotheses = {index: [hypothesis] for index, (_, hypothesis) in enumerate(pairs)}
    if not any(reference.split() for reference, _ in pairs):
        return np.zeros(len(pairs))  # the package takes the maximum of no document frequencies
    return np.asarray(Cider().compute_score(references, hypotheses)[1], dtype=np.float64)


def cider(pairs: Sequence[Pair]) -> Statistic:
    """Corpus CIDEr; resamples keep the word weights of the whole corpus."""
    return mean(cider_scores(pairs))


def meteor_counts(pairs: Sequence[Pair], timeout_s: float | None = None) -> Array | None:
    """METEOR's counts of every (reference, hypothesis), [pairs, METEOR_COUNTS]; None where there is no Java.

    Raises UserError where the Java program fails or takes longer than `timeout_s` (None: by the number of pairs).
    """
    java = shutil.which("java")
    if java is None:
        return None
    lines = "".join(f"SCORE ||| {_line(reference)} ||| {_line(hypothesis)}\n" for reference, hypothesis in pairs)
    limit = timeout_s if timeout_s is not None else _START_S + _PAIR_S * len(pairs)
    command = [java, "-jar", "-Xmx2G", _jar().name, "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        done = subprocess.run(
            command, input=lines, cwd=_jar().parent, capture_output=True, text=True, encoding="utf-8", timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        message = f"METEOR took longer than {limit:g} s for {len(pairs)} pairs; --no-meteor leaves it out"
        raise UserError(message) from error
    rows = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or len(rows) != len(pairs) or any(len(row) != METEOR_COUNTS for row in rows):
        # Java's message could quote a report: only its first word, the kind of error, is told.
        raise UserError(
            f"METEOR's Java program failed (status {done.returncode}, {len(rows)} of {len(pairs)} answers); "
            "--no-meteor leaves it out"
        )
    counts = np.array(rows, dtype=np.float64).reshape(len(pairs), METEOR_COUNTS)
    # METEOR counts no chunk for a text that is its reference word for word: alone, and so in the sums.
    length, ref_length, chunks, words, ref_words = (counts[:, index] for index in (0, 1, 20, 21, 22))
    counts[(words == length) & (ref_words == ref_length) & (chunks == 1), 20] = 0.0
    return counts


def meteor(sums: Array) -> Array:
    """METEOR 1.5 from sums of `meteor_counts`, [..., METEOR_COUNTS] -> [...]."""
    length, ref_length, function, ref_function = (sums[..., index] for index in range(4))
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    chunks, words, ref_words = (sums[..., index] for index in range(20, 23))
    content = stages @ np.array([_DELTA, 0.0, 1 - _DELTA, 0.0]) @ _STAGES
    ref_content = stages @ np.array([0.0, _DELTA, 0.0, 1 - _DELTA]) @ _STAGES
    precision = _ratio(content, _DELTA * (length - function) + (1 - _DELTA) * function)
    recall = _ratio(ref_content, _DELTA * (ref_length - ref_function) + (1 - _DELTA) * ref_function)
    fmean = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragments = _ratio(chunks, (words + ref_words) / 2)
    return np.asarray(fmean * (1 - _GAMMA * fragments**_BETA))


def package_version() -> str:
    """`pycocoevalcap`'s version, for signatures."""
    return version("pycocoevalcap")


def _jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "meteor" / "meteor-1.5.jar"
        if path.is_file():
            return path
    raise UserError("METEOR needs the package pycocoevalcap with its meteor-1.5.jar (pip install pycocoevalcap)")


def _line(text: str) -> str:
    # As the package does, so that a text can't end its field; and a text can't end its line.
    return " ".join(text.replace("|||", "").split())


def _ratio(part: Array, whole: Array) -> Array:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
