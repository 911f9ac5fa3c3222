"""All measures of systems that wrote reports for the same studies, as statistics that can be resampled.

Contract: no model and no file; what scores comes in as `Scoring`. Text measures see cleaned text, so do the models
unless the task says `verbatim`; texts that are `prepared` are not cleaned again. A pair without a score leaves its
study out of the means of the components, and is counted; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner.evaluation import metrics, nlg
from learner.evaluation.bootstrap import Array, Statistic, mean
from learner.evaluation.labels import BLANK_ROW, label_statistics
from learner.evaluation.measures import bleu_statistics
from learner.evaluation.scoring import Progress, Scoring
from reward_server.errors import PairError
from rrg.data.mentions import findings_in
from rrg.data.sections import clean

Reward = Callable[[Mapping[str, float]], float]
Groups = dict[str, dict[str, Statistic]]
GROUPS = ("reward", "text", "findings", "labels")


@dataclass(frozen=True)
class Task:
    """The studies, their reports as they stand, and the finding codes that hold (None: read from the report).

    `prepared`: references and reports are in the form of `clean`, as those of a run are. Cleaning would end a report
    that was cut off with a full stop, which its policy did not write and was not rewarded for.
    """

    ids: tuple[str, ...]
    references: tuple[str, ...]
    findings: tuple[frozenset[str] | None, ...]
    verbatim: bool = False
    prepared: bool = False
    meteor: bool = True

    def clean(self, text: str) -> str:
        """The text as it is measured."""
        return text if self.prepared else clean(text)

    @property
    def truth(self) -> list[frozenset[str]]:
        """The findings of every study."""
        pairs = zip(self.findings, self.references, strict=True)
        return [findings_in(self.clean(text)) if codes is None else codes for codes, text in pairs]


@dataclass(frozen=True)
class System:
    """One system: its statistics by group and name, values of every study by name, and what could not be had."""

    statistics: Groups
    per_study: dict[str, Array]
    failed: int
    failure: str | None
    notes: tuple[str, ...]


def measure(
    task: Task, systems: Mapping[str, Sequence[str]], scoring: Scoring | None, reward: Reward | None, progress: Progress
) -> dict[str, System]:
    """Every system's measures; `systems` gives a report a study, by name. All go through the models together."""
    cleaned = {name: [task.clean(text) for text in texts] for name, texts in systems.items()}
    references = [task.clean(text) for text in task.references]
    pairs = {name: list(zip(references, texts, strict=True)) for name, texts in cleaned.items()}
    counts: Mapping[str, Array] = _meteor(task, pairs) or {}
    if scoring is not None:  # one queue of pairs, so one progress bar
        scoring.scores([pair for texts in systems.values() for pair in _model_pairs(task, texts)], progress)
    return {
        name: _measured(task, systems[name], pairs[name], counts.get(name), scoring, reward, progress)
        for name in systems
    }


def _measured(
    task: Task,
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    meteor_counts: Array | None,
    scoring: Scoring | None,
    reward: Reward | None,
    progress: Progress,
) -> System:
    truth = task.truth
    hypotheses = [hypothesis for _, hypothesis in pairs]
    statistics: Groups = {}
    per_study: dict[str, Array] = {}
    failed, failure, notes = 0, None, [_empty(hypotheses)]
    if scoring is not None and reward is not None:
        answers = scoring.scores(_model_pairs(task, texts), progress)
        errors = [str(answer) for answer in answers if isinstance(answer, PairError)]
        failed, failure = len(errors), next(iter(errors), None)
        per_study |= _components(scoring.description.components, answers, reward)
        abnormal = np.array([bool(codes) for codes in truth])
        means = {name: _known_mean(values) for name, values in per_study.items()}
        means["reward_abnormal"] = _known_mean(per_study["reward"], abnormal)
        if "radcliq_v1" in means:
            means["radcliq_v1_inverse"] = inverse(means["radcliq_v1"])
        statistics["reward"] = {name: means[name] for name in dict.fromkeys(["reward", "reward_abnormal", *means])}
    statistics["text"] = _text(pairs, meteor_counts, per_study)
    statistics["findings"] = _findings(hypotheses, truth, per_study)
    if scoring is not None and scoring.labels_texts:
        sides = list(zip(*_model_pairs(task, texts), strict=True))
        expected, stated = (scoring.labels(side, progress) for side in sides)
        known = [None not in rows for rows in zip(expected, stated, strict=True)]
        filled = [[row or BLANK_ROW for row in side] for side in (expected, stated)]
        statistics["labels"] = label_statistics(filled[0], filled[1], known)
        notes.append(_unlabelled(known))
    return System(statistics, per_study, failed, failure, tuple(filter(None, notes)))


def _model_pairs(task: Task, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = zip(task.references, texts, strict=True)
    return [pair if task.verbatim else (task.clean(pair[0]), task.clean(pair[1])) for pair in pairs]


def _components(
    names: Sequence[str], answers: Sequence[Mapping[str, float] | PairError], reward: Reward
) -> dict[str, Array]:
    """Reward and components of every study, NaN where a pair has none."""
    blank = dict.fromkeys(names, np.nan)
    rows = [blank if isinstance(answer, PairError) else answer for answer in answers]
    rewards = [np.nan if isinstance(answer, PairError) else reward(answer) for answer in answers]
    taken = {"bleu2", "repetition"}  # measures of the text have these names
    components = {f"reward_{name}" if name in taken else name: np.array([r[name] for r in rows]) for name in names}
    return {"reward": np.array(rewards, dtype=np.float64), **components}


def _text(
    pairs: Sequence[tuple[str, str]], meteor_counts: Array | None, kept: dict[str, Array]
) -> dict[str, Statistic]:
    hypotheses = [hypothesis for _, hypothesis in pairs]
    values = {
        "rougeL": np.array([metrics.rouge_l(*pair) for pair in pairs]),
        "cider": nlg.cider_scores(pairs),
        "repetition": np.array([metrics.repetition(text) for text in hypotheses]),
        "words": np.array([metrics.words(text) for text in hypotheses], dtype=np.float64),
    }
    means = {name: mean(value) for name, value in values.items()}
    found = {**bleu_statistics(pairs), "rougeL": means["rougeL"], "cider": means["cider"]}
    if meteor_counts is not None:
        found["meteor"] = Statistic(meteor_counts, nlg.meteor)
        values["meteor"] = nlg.meteor(meteor_counts)
    kept |= values
    return found | {name: means[name] for name in ("repetition", "words")}


def _findings(
    hypotheses: Sequence[str], truth: Sequence[frozenset[str]], kept: dict[str, Array]
) -> dict[str, Statistic]:
    stated = [findings_in(text) for text in hypotheses]
    counts = np.stack([metrics.finding_counts(*pair) for pair in zip(stated, truth, strict=True)])
    for index, name in enumerate(("findings_right", "findings_stated", "findings_true")):
        kept[name] = counts[:, index]
    return {
        "finding_precision": Statistic(counts, metrics.finding_precision),
        "finding_recall": Statistic(counts, metrics.finding_recall),
        "finding_f1": Statistic(counts, metrics.finding_f1),
    }


def _meteor(task: Task, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, Array] | None:
    """All systems in one call of Java, which takes long to start; every different pair once."""
    if not task.meteor:
        return None
    distinct = list(dict.fromkeys(pair for rows in pairs.values() for pair in rows))
    counts = nlg.meteor_counts(distinct)
    if counts is None:
        return None
    place = {pair: index for index, pair in enumerate(distinct)}
    return {name: counts[[place[pair] for pair in rows]] for name, rows in pairs.items()}


def _known_mean(values: Array, of: Array | None = None) -> Statistic:
    known = np.isfinite(values)
    return mean(np.nan_to_num(values), of=known if of is None else known & of.astype(bool))


def _unlabelled(known: Sequence[bool]) -> str | None:
    count = len(known) - sum(known)
    return f"{count} studies could not be labelled; the label table is without them" if count else None


def inverse(of: Statistic) -> Statistic:
    """1 / mean, as leaderboards print RadCliQ; undefined where resamples lie on both sides of its pole at 0."""

    def of_sums(sums: Array) -> Array:
        means = np.asarray(of.of_sums(sums))
        if (means <= 0).any() and (means >= 0).any():
            return np.full_like(means, np.nan)
        return np.asarray(1.0 / means)

    return Statistic(of.columns, of_sums)


def _empty(hypotheses: Sequence[str]) -> str | None:
    count = sum(not text for text in hypotheses)
    return f"{count} of {len(hypotheses)} generated reports are empty; they count as they are" if count else None
