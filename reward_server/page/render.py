"""The HTML of a result: components, marked reports, graphs.

Contract: pure functions of text; whatever was typed is escaped. An outcome has a class of its name (`page.css`), a sign
and a word beside its colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from reward_server.explanation import Entity, Explanation, Outcome, Relation, outcome_of
from reward_server.page.meanings import LABELS, MEANINGS
from reward_server.scorer import Description, Pair
from reward_server.spec import COMPOSITES

SIGNS: Final[Mapping[Outcome, str]] = MappingProxyType(
    {
        Outcome.CONTRADICTED: "\N{MULTIPLICATION SIGN}",
        Outcome.MISSED: "\N{MINUS SIGN}",
        Outcome.INVENTED: "+",
        Outcome.PARTLY: "\N{ALMOST EQUAL TO}",
        Outcome.MATCHED: "\N{CHECK MARK}",
    }
)
"""The sign of every outcome, the worst first."""
_WORST_FIRST: Final = tuple(SIGNS)


def backend_line(about: Description) -> str:
    """What computes the scores, and what it is not."""
    if about.backend == "embedded":
        note = "<b>Not RadCliQ</b>: a stand-in of rules and a small encoder that needs no download."
    else:
        note = "RadCliQ, of the weights whose hashes `python -m reward_server describe` shows."
    return (
        f'<p class="backend">Computed by the backend <b>{escape(about.backend)}</b> '
        f"({escape(about.definition)}): {escape(about.formula)}. {note}</p>"
    )


def problem(message: str) -> str:
    """What stands in the place of a result."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def result(about: Description, pair: Pair, components: Mapping[str, float], found: Explanation) -> str:
    """All of it."""
    return "".join(
        (
            '<section class="result">',
            _composite(about, components),
            _legend(),
            '<div class="two">',
            _marked("Reference", pair[0], found.reference, reference=True),
            _marked("Hypothesis", pair[1], found.hypothesis, reference=False),
            "</div>",
            '<div class="two">',
            _graph("Graph of the reference", found.reference, found.hypothesis, reference=True),
            _graph("Graph of the hypothesis", found.hypothesis, found.reference, reference=False),
            "</div>",
            _components(about, components),
            "</section>",
        )
    )


def _composite(about: Description, components: Mapping[str, float]) -> str:
    name = COMPOSITES.get(about.backend)
    if name is None:
        return f"<p>Which component of the backend {escape(about.backend)} is the composite is not known here.</p>"
    value, span = components[name], MEANINGS[about.backend][name].span
    return (
        f'<p class="composite"><span>{escape(name)}</span> <b data-component="composite">{value:.3f}</b> '
        f"<span>lower is better; {span}. As a reward: {-value:.3f}</span></p>"
    )


def _components(about: Description, components: Mapping[str, float]) -> str:
    rows = []
    for name, value in components.items():
        meaning = MEANINGS.get(about.backend, {}).get(name)
        if meaning is None:  # of a server of somebody's own
            better, told = "", "not known here"
        else:
            better = "\N{DOWNWARDS ARROW} lower" if meaning.lower else "\N{UPWARDS ARROW} higher"
            told = f"{escape(meaning.text)} ({meaning.span})"
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="value" data-component="{escape(name)}">{value:.4f}</td>'
            f'<td class="better">{better}</td><td>{told}</td></tr>'
        )
    head = "<tr><th>component</th><th>value</th><th>better</th><th>what it is</th></tr>"
    return f'<h3>Components</h3><table class="components"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _legend() -> str:
    marks = "".join(_mark(outcome, escape(outcome.value)) for outcome in reversed(_WORST_FIRST))
    return f'<p class="legend">{marks}<span>(unmarked: not part of a graph)</span></p>'


def _marked(title: str, report: str, graph: Sequence[Entity], *, reference: bool) -> str:
    """A report with its entities marked; where several overlap, as the worst of them."""
    borders = {0, len(report), *(place for one in graph for place in (one.start, one.end))}
    parts = []
    for start, end in pairwise(sorted(place for place in borders if place <= len(report))):
        covering = [one for one in graph if one.start <= start and end <= one.end]
        text = escape(report[start:end])
        if covering:
            outcomes = {outcome_of(one.credit, reference=reference) for one in covering}
            about = "; ".join(f"{one.name} ({LABELS.get(one.label, one.label)})" for one in covering)
            text = _mark(min(outcomes, key=_WORST_FIRST.index), text, about)
        parts.append(text)
    body = "".join(parts) or "<i>(empty)</i>"
    return f'<div><h3>{title}</h3><div class="report" data-report="{title.lower()}">{body}</div></div>'


def _mark(outcome: Outcome, text: str, about: str = "") -> str:
    """`text` is HTML."""
    title = f"{outcome.value}: {about}" if about else outcome.value
    return f'<mark class="{outcome.name.lower()}" title="{escape(title)}">{text}<sup>{SIGNS[outcome]}</sup></mark>'


def _graph(title: str, graph: Sequence[Entity], other: Sequence[Entity], *, reference: bool) -> str:
    items = "".join(_node(one, other, reference=reference) for one in graph)
    body = f'<ul class="graph">{items}</ul>' if items else "<p><i>(nothing that is part of a graph)</i></p>"
    return f"<div><h3>{title}</h3>{body}</div>"


def _node(one: Entity, other: Sequence[Entity], *, reference: bool) -> str:
    outcome = outcome_of(one.credit, reference=reference)
    line = [_mark(outcome, escape(one.name)), f'<span class="label">{escape(LABELS.get(one.label, one.label))}</span>']
    partner = None if one.counterpart is None else other[one.counterpart]
    if partner is not None and outcome is not Outcome.MATCHED:
        said = f"{partner.name} ({LABELS.get(partner.label, partner.label)})"
        line.append(f'<span class="partner">{escape(outcome.value)}: {escape(said)}</span>')
    links = "".join(_links(one.relations, reference=reference))
    return f"<li>{' '.join(line)}{f'<ul>{links}</ul>' if links else ''}</li>"


def _links(relations: Sequence[Relation], *, reference: bool) -> Iterator[str]:
    for one in relations:
        outcome = outcome_of(one.credit, reference=reference)
        kind = escape(one.kind.replace("_", " "))
        yield f"<li>{kind} \N{RIGHTWARDS ARROW} {_mark(outcome, escape(one.target))}</li>"
