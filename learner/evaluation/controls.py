"""Reports written without a generator: what a trained policy has to beat, and what it might reach.

Contract: every control returns one report a test study, in order, and sees of the test studies no more than its name
says. `most_frequent` and `best_constant` see nothing (CONSTANT), `nearest_image` the image, `nearest_findings` the true
finding codes: it is no rival but an orientation from above. Ties are resolved the same way every time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from configs.schema import EvalConfig
from learner.evaluation.measures import Reward, Scorer, score_pairs, true_findings
from learner.evaluation.metrics import tokens
from rrg.data.study import Study

CONSTANT = ("most_frequent", "best_constant")
"""The controls that give every study the same report."""

_FINAL_SHARE = 4  # one candidate in so many is scored on all of the sampled studies
_BLOCK = 512  # test images compared at once: bounds memory on large sets


def most_frequent(train: Sequence[Study], test: Sequence[Study]) -> list[str]:
    """The training report that most studies have (the first in alphabetical order of several)."""
    return [_by_frequency(train)[0]] * len(test)


def best_constant(
    train: Sequence[Study], test: Sequence[Study], score: Scorer, reward: Reward, cfg: EvalConfig, seed: int
) -> list[str]:
    """The one training report with the highest mean reward over the training studies, as far as a search finds it.

    `cfg.constant_candidates` candidates (the most frequent, the most typical and random ones) are scored on a quarter
    of `cfg.constant_studies` random training studies, and the best quarter of them on the rest too: what an all-normal
    template earns without looking at an image. Ties go to the first candidate.
    """
    rng = np.random.default_rng(seed)
    candidates = _candidates(train, cfg.constant_candidates, rng)
    chosen = rng.permutation(len(train))[: cfg.constant_studies]
    references = [train[index].target for index in chosen]
    first = references[: max(1, len(references) // 4)]
    rewards = _mean_rewards(first, candidates, score, reward)
    finalists = [candidates[i] for i in np.argsort(-rewards, kind="stable")[: max(1, len(candidates) // _FINAL_SHARE)]]
    best = int(np.argmax(_mean_rewards(references, finalists, score, reward)))
    return [finalists[best]] * len(test)


def nearest_image(
    train: Sequence[Study], train_features: npt.NDArray[np.float32], test_features: npt.NDArray[np.float32]
) -> list[str]:
    """The report of the training study with the most similar image, for every row of `test_features` [M, C].

    Similarity is the cosine with `train_features` [N, C]; features are standardised by their training mean and spread.
    """
    if len(train) != len(train_features):
        raise ValueError(f"{len(train)} training studies but {len(train_features)} rows of features")
    center, spread = train_features.mean(axis=0), train_features.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)  # constant features tell nothing
    known = _unit_rows((train_features - center) * scale)
    nearest: list[int] = []
    for start in range(0, len(test_features), _BLOCK):
        block = _unit_rows((test_features[start : start + _BLOCK] - center) * scale)
        nearest += np.argmax(block @ known.T, axis=1).tolist()
    return [train[index].target for index in nearest]


def nearest_findings(train: Sequence[Study], test: Sequence[Study]) -> list[str]:
    """The most typical report among the training studies with the most similar finding set (highest Jaccard index)."""
    by_set: dict[frozenset[str], list[Study]] = {}
    for study in train:
        by_set.setdefault(true_findings(study), []).append(study)
    wanted = {true_findings(study) for study in test}
    report = {findings: _typical_report(_nearest_group(findings, by_set)) for findings in wanted}
    return [report[true_findings(study)] for study in test]


def _nearest_group(findings: frozenset[str], by_set: dict[frozenset[str], list[Study]]) -> list[Study]:
    """All studies whose finding set is as similar as the most similar one."""
    similarity = {known: _jaccard(findings, known) for known in by_set}
    best = max(similarity.values())
    return [study for known, studies in by_set.items() if similarity[known] == best for study in studies]


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def _typical_report(studies: Sequence[Study]) -> str:
    reports = [study.target for study in studies]
    typicality = _typicality(reports)
    return max(sorted(set(reports)), key=lambda report: typicality[report])


def _candidates(train: Sequence[Study], count: int, rng: np.random.Generator) -> list[str]:
    """`count` different training reports (or all, if fewer): a third each most frequent, most typical, random."""
    frequent = _by_frequency(train)
    typicality = _typicality([study.target for study in train])
    typical = sorted(frequent, key=lambda report: -typicality[report])
    random = [frequent[index] for index in rng.permutation(len(frequent))]
    mixed = (report for triple in zip(frequent, typical, random, strict=True) for report in triple)
    return list(dict.fromkeys(mixed))[:count]


def _by_frequency(train: Sequence[Study]) -> list[str]:
    """The different training reports that are not empty, most frequent first."""
    counts = Counter(study.target for study in train if study.target)
    return sorted(counts, key=lambda report: (-counts[report], report))


def _typicality(reports: Sequence[str]) -> dict[str, float]:
    """How close each report is to all of them: the mean cosine of its word-pair counts with those of every report."""
    counts = {report: _pair_counts(report) for report in set(reports)}
    norms = {report: max(1.0, sum(n * n for n in grams.values()) ** 0.5) for report, grams in counts.items()}
    center: defaultdict[tuple[str, str], float] = defaultdict(float)
    for report in reports:
        for gram, n in counts[report].items():
            center[gram] += n / norms[report]
    return {
        report: sum(n * center[gram] for gram, n in grams.items()) / norms[report] / len(reports)
        for report, grams in counts.items()
    }


def _pair_counts(report: str) -> Counter[tuple[str, str]]:
    return Counter(pairwise(tokens(report)))


def _mean_rewards(
    references: Sequence[str], candidates: Sequence[str], score: Scorer, reward: Reward
) -> npt.NDArray[np.float64]:
    """Mean reward of every candidate as the report of all references, [candidates]."""
    scores = score_pairs([(reference, candidate) for candidate in candidates for reference in references], score)
    return np.array([np.mean([reward(scores[ref, text]) for ref in references]) for text in candidates])


def _unit_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))
