"""Which curves a page shows, by the names that `metrics.jsonl` gives them.

Contract: a curve whose numbers a run has not recorded is left out; nothing else is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from learner.report.charts import Chart, Points, line_chart
from learner.report.data import Row, RunRecord

_X: Final = {"warm_start": "warm-start step", "rl": "RL step", "validation": "RL step"}


@dataclass(frozen=True)
class Curves:
    """One chart of a run: (phase, metric) by the name of the line."""

    title: str
    lines: Mapping[str, tuple[str, str]]


WARM_START: Final = (
    Curves(
        "losses of the warm start",
        {
            "all, weighted": ("warm_start", "loss"),
            "captions": ("warm_start", "caption_loss"),
            "report": ("warm_start", "report_loss"),
        },
    ),
    Curves(
        "losses of the regions",
        {
            "findings": ("warm_start", "findings_loss"),
            "significance": ("warm_start", "significance_loss"),
            "boxes (attention)": ("warm_start", "attention_loss"),
        },
    ),
)
RL: Final = (
    Curves("reward of the samples", {"mean": ("rl", "reward_mean")}),
    Curves("reward, validation (greedy)", {"all studies": ("validation", "reward")}),
    Curves(
        "validation",
        {
            "reward, abnormal": ("validation", "abnormal_reward"),
            "finding F1": ("validation", "finding_f1"),
            "shuffle gap": ("validation", "shuffle_gap"),
            "BLEU-4": ("validation", "bleu4"),
        },
    ),
    Curves("KL to the reference policy", {f"estimator {k}": ("rl", f"kl_{k}") for k in ("k1", "k2", "k3")}),
    Curves("entropy, nats a token", {"entropy": ("rl", "entropy")}),
    Curves("tokens a report", {"mean": ("rl", "length_mean"), "validation (words)": ("validation", "length")}),
    Curves(
        "shares of samples",
        {
            "different reports": ("rl", "unique"),
            "cut at the limit of tokens": ("rl", "length_limit"),
            "different, validation": ("validation", "unique"),
        },
    ),
    Curves(
        "seconds a step",
        {
            "step": ("rl", "seconds_step"),
            "rollout": ("rl", "seconds_rollout"),
            "waiting for rewards": ("rl", "seconds_reward_wait"),
            "update": ("rl", "seconds_update"),
            "weight sync": ("rl", "seconds_sync"),
        },
    ),
    Curves("idle share of the time", {name: ("rl", f"idle_{name}") for name in ("rollout", "reward", "learner")}),
    Curves("gradient norm", {"gradient norm": ("rl", "grad_norm")}),
    Curves("staleness, weight versions", {"mean": ("rl", "staleness_mean"), "most": ("rl", "staleness_max")}),
)
COMPARED: Final = (
    ("reward of the samples", ("rl", "reward_mean")),
    ("reward, validation", ("validation", "reward")),
    ("reward of abnormal studies, validation", ("validation", "abnormal_reward")),
    ("finding F1, validation", ("validation", "finding_f1")),
    ("shuffle gap, validation", ("validation", "shuffle_gap")),
    ("KL to the reference policy (k3)", ("rl", "kl_k3")),
    ("entropy, nats a token", ("rl", "entropy")),
    ("tokens a report", ("rl", "length_mean")),
    ("different reports, share", ("rl", "unique")),
    ("seconds a step", ("rl", "seconds_step")),
    ("loss of the warm start", ("warm_start", "loss")),
)
_COMPONENT: Final = "component_"


def warm_start_charts(record: RunRecord) -> list[Chart]:
    """The curves of supervised fine-tuning."""
    return list(_charts(record, WARM_START))


def rl_charts(record: RunRecord) -> list[Chart]:
    """The curves of reinforcement learning, those of the reward's components after the reward."""
    names = dict.fromkeys(key for row in record.metrics.get("rl", []) for key in row if key.startswith(_COMPONENT))
    lines = {name.removeprefix(_COMPONENT): ("rl", name) for name in names}
    sampled, validation, *others = RL
    return list(_charts(record, (sampled, validation, Curves("components of the reward", lines), *others)))


def compared_charts(records: Mapping[str, RunRecord], left_out: Collection[str]) -> list[Chart]:
    """One metric a chart, a line a run; without the metrics in `left_out`."""
    found = []
    for title, (phase, metric) in COMPARED:
        if metric in left_out:
            continue
        series = {name: points(record.metrics.get(phase, []), metric) for name, record in records.items()}
        found.append(line_chart(title, series, _X[phase]))
    return [chart for chart in found if chart is not None]


def points(rows: Sequence[Row], metric: str) -> Points:
    """(step, value) of the rows that have the metric."""
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def _charts(record: RunRecord, wanted: Sequence[Curves]) -> Iterator[Chart]:
    for curves in wanted:
        series = {name: points(record.metrics.get(phase, []), metric) for name, (phase, metric) in curves.lines.items()}
        known = {name: found for name, found in series.items() if found}
        phase = next(iter(curves.lines.values()), ("rl", ""))[0]
        chart = line_chart(curves.title, known, _X[phase])
        if chart is not None:
            yield chart
