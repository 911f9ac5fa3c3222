"""A result (`learner.evaluation.result`) as tables in the terminal, each with the signature that pins its protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner.evaluation.direction import arrow
from learner.evaluation.labels import MEASURES, table_name, table_names
from learner.evaluation.numbers import fixed, spread
from learner.evaluation.result import Result

_TITLES: Final = {
    "reward": "Reward and its components",
    "text": "Text, as pycocoevalcap counts it",
    "findings": "Findings stated in the report, against those of {truth}",
    "labels": "F1 of the 14 CheXpert labels and of five of them",
}
_TRUTHS: Final = {
    "mesh": "the MeSH codes",
    "reference": "the reference report",
    "mesh+reference": "the MeSH codes, or of the report where nobody coded it",
    "scene-graph+reference": "the scene graph, or of the report where it has none",
}
Entry = Mapping[str, Any]


def print_result(result: Result, console: Console) -> None:
    """All tables, then notes."""
    for group, entries in result["metrics"].items():
        title = _TITLES[group].format(truth=_TRUTHS[result["protocol"]["finding_truth"]])
        console.print(f"[bold]{title}[/bold]" + _by(result, group), highlight=False)
        console.print(_label_table(entries) if group == "labels" else _table(entries))
        if group != "labels" and any("baseline" in entry for entry in entries.values()):
            console.print(_deltas(entries))
        console.print(escape(result["signatures"][group]), style="dim", highlight=False, soft_wrap=True)
        console.print()
    for note in result["notes"]:
        console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)


def _by(result: Result, group: str) -> str:
    if group not in ("reward", "labels"):
        return ""
    return escape(f", backend {result['backend']['name']} ({result['backend']['definition']})")


def _table(entries: Mapping[str, Entry]) -> Table:
    """Values and controls."""
    controls = list(next(iter(entries.values())).get("controls", ()))
    header = ["metric", "value [95 %]", *(name.replace("_", " ") for name in controls)]
    rows = []
    for name, entry in entries.items():
        cells = [name + arrow(name), _spread([entry["value"], entry["low"], entry["high"]])]
        cells += [_cell(entry["controls"][control]["value"]) for control in controls]
        rows.append([*cells, *([untold(entry)] if controls else [])])
    return filled_table([*header, *(["does not tell from"] if controls else [])], rows)


def _deltas(entries: Mapping[str, Entry]) -> Table:
    """The comparison with the baseline."""
    rows = []
    for name, entry in entries.items():
        base = entry["baseline"]
        values = [_cell(entry["value"]), _cell(base["value"])]
        rows.append([name + arrow(name), *values, _spread(base["difference"], "+"), _p(base["p"])])
    return filled_table(["metric", "system", "baseline", "difference [95 %]", "p"], rows)


def _label_table(entries: Mapping[str, Entry]) -> Table:
    """Label sets, policies and averages down, precision, recall and F1 across."""
    some = next(iter(entries.values()))
    header = ["labels", "uncertain", "average", "precision", "recall", "F1 [95 %]"]
    header += ["F1 - baseline [95 %]", "p"] if "baseline" in some else []
    header += ["F1 does not tell from"] if "controls" in some else []
    return filled_table(header, list(_label_rows(entries)), left=3)


def _label_rows(entries: Mapping[str, Entry]) -> Iterator[list[str]]:
    for size, policy, average in table_names():
        precision, recall, f1 = (entries[table_name(size, policy, average, measure)] for measure in MEASURES)
        cells = [size, policy.removeprefix("uncertain_"), average, _cell(precision["value"]), _cell(recall["value"])]
        cells.append(_spread([f1["value"], f1["low"], f1["high"]]))
        if "baseline" in f1:
            cells += [_spread(f1["baseline"]["difference"], "+"), _p(f1["baseline"]["p"])]
        yield [*cells, untold(f1)] if "controls" in f1 else cells


def untold(entry: Entry) -> str:
    """The controls that a metric does not tell the system from, and those that it finds better."""
    sign = 1 if entry["better"] == "higher" else -1
    names = []
    for control in entry["not_told_from"]:
        _, low, high = entry["controls"][control]["difference"]
        beaten = high < 0 if sign > 0 else low > 0
        names.append(control.replace("_", " ") + (" (better)" if beaten else ""))
    return ", ".join(names)


def filled_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(header):
        words = index < left or "tell from" in title
        table.add_column(title, justify="left" if words else "right", no_wrap=not words)
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a README: words in the first column, numbers in the others."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [header, rule, *rows])


def _cell(value: float | None) -> str:
    return "-" if value is None else fixed(value, 4)


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spread(numbers: Sequence[float | None], sign: str = "") -> str:
    value, low, high = numbers
    if value is None or low is None or high is None:
        return "-"
    return spread((value, low, high), 4, sign)
