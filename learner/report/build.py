"""`report.html` of a run directory.

Contract: `write_report` reads the directory, and X-rays of the studies that it is given; it changes nothing but
`report.html`. `attempt_report` is for the end of a run, which a failing report must not lose: it says what failed, and
where the traceback is, and goes on.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from configs.schema import RewardConfig
from learner.evaluation.regiontable import region_cells
from learner.report.curves import rl_charts, warm_start_charts
from learner.report.data import RunRecord, read_run, section
from learner.report.gallery import EACH, Card, gallery
from learner.report.page import write_page
from learner.report.tables import Cell, Table, evaluation_table, result_tables
from reward_server.errors import RewardError
from rrg.data.study import Study
from rrg.errors import UserError

REPORT: Final = "report.html"
FAILED: Final = "report_failed.txt"
_REGIONS: Final = {"regions": "after stage=regions", "sft": "warm start", "rl": "RL"}


def write_report(record: RunRecord, studies: Iterable[Study], notes: Iterable[str] = (), result: Any = None) -> Path:
    """Writes the page; returns its path. `studies` are those whose X-rays can be shown, `notes` what else is missing,
    `result` that of `learner.evaluate --json`.

    Raises UserError where there is nothing to show, or an X-ray cannot be read.
    """
    if not record.metrics and not record.policies and record.summary is None:
        raise UserError(f"{record.folder}: nothing to report yet: no metrics.jsonl, no samples, no summary.json")
    reward, unknown = section(record, "reward", RewardConfig)
    last = record.last
    cards, lacking = _cards(record, {study.id: study for study in studies}, reward)
    missing = [*record.missing, *notes, *lacking]
    missing += [f"config.yaml: fields of another version, left out: {', '.join(unknown)}"] if unknown else []
    path = record.folder / REPORT
    write_page(
        path,
        "report.html",
        title=record.folder.resolve().name,
        about=_about(record, reward),
        state=_state(record),
        goals=(record.summary or {}).get("goals", []),
        missing=missing,
        evaluation=evaluation_table(record),
        evaluated=f"{0 if last is None else len(last.rows)} test studies",
        regions=list(_regions(record)),
        results=[] if result is None else list(result_tables(result)),
        rl=rl_charts(record),
        warm_start=warm_start_charts(record),
        cards=cards,
        pictured=any(card.figure for card in cards),
        barred=any(card.terms or card.components for card in cards),
        compared=len(record.policies) > 1,
        chosen="" if last is None else _chosen(len(last.rows), cards, last.title),
        findings=sorted(Counter(name for card in cards for name in card.findings).items()),
        config=OmegaConf.to_yaml(OmegaConf.create(dict(record.config))),
        **_times(record.summary or {}),
    )
    return path


def attempt_report(folder: Path, studies: Iterable[Study], tell: Callable[[str], None]) -> None:
    """The report of a run that has just ended, or a line that says why there is none. A run that has recorded nothing
    gets none."""
    if not (folder / "metrics.jsonl").is_file():
        return
    try:
        path = write_report(read_run(folder), studies)
    except Exception as error:  # the run is whole without it
        with suppress(OSError):  # the disk may be what failed
            (folder / FAILED).write_text(traceback.format_exc(), encoding="utf-8")
        tell(f"no {REPORT}: {error} (traceback: {folder / FAILED}); again with: python -m learner.report {folder}")
    else:
        (folder / FAILED).unlink(missing_ok=True)
        tell(f"report (holds report text and X-rays): {path}")


def _cards(record: RunRecord, known: Mapping[str, Study], reward: RewardConfig) -> tuple[list[Card], list[str]]:
    """The gallery, and what it lacks: measures of another version may not have all that the reward is made of."""
    if record.last is None:
        return [], []
    earlier = record.policies[-2] if len(record.policies) > 1 else None
    try:
        return gallery(record.last, earlier, known, reward), []
    except RewardError as error:
        told = f"per_study_{record.last.name}.csv: no bars of what adds to the reward ({error})"
        return gallery(record.last, earlier, known, None), [told]


def _about(record: RunRecord, reward: RewardConfig) -> str:
    """What the run is of: data, what its X-rays really are, model, reward."""
    summary = record.summary or {}
    data = record.config.get("data", {}).get("name", "unknown data")
    images = summary.get("images") or ("rendered X-rays" if str(data).startswith("rendered") else "X-rays")
    llm = record.config.get("model", {}).get("llm", {}).get("path") or "language model from scratch"
    return f"{data}, {images}; {llm}; {reward.backend} reward; seed {record.config.get('seed')}"


def _state(record: RunRecord) -> Mapping[str, str]:
    steps = {phase: int(rows[-1]["step"]) for phase, rows in record.metrics.items() if rows}
    done = f"{steps.get('warm_start', 0)} warm-start steps, {steps.get('rl', 0)} RL steps"
    if record.stopped is not None:
        return {"kind": "stopped", "told": f"The run stopped itself: {record.stopped} ({done})"}
    if record.summary is None:
        return {"kind": "unfinished", "told": f"The run has not come to its end: {done} so far."}
    return {"kind": "whole", "told": f"The run came to its end: {done}."}


def _regions(record: RunRecord) -> Iterator[tuple[str, Table]]:
    for name, measures in ((record.summary or {}).get("regions") or {}).items():
        if measures is not None:
            header, rows = region_cells(measures)
            yield _REGIONS[name], Table(tuple(header), tuple((row[0], tuple(map(Cell, row[1:]))) for row in rows))


def _times(summary: Mapping[str, Any]) -> dict[str, Any]:
    seconds: Mapping[str, float] = summary.get("seconds", {})
    most = max(seconds.values(), default=0.0) or 1.0
    peak = summary.get("peak_rss_gb")
    return {
        "phases": [(name, _duration(value), 100 * value / most) for name, value in seconds.items()],
        "memory": "" if peak is None else f"At most {peak:.1f} GB of memory, all processes together.",
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _chosen(total: int, cards: list[Card], policy: str) -> str:
    if len(cards) == total:
        return f"All {total} test studies, as the {policy} policy wrote of them."
    thirds = f"{EACH} with the best, {EACH} about the median and {EACH} with the worst reward"
    how = thirds if cards[0].group else "first"
    return f"{len(cards)} of {total} test studies, as the {policy} policy wrote of them: the {how}."
