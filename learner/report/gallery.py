"""Studies for people to look at: which ones, and what is told of each.

Contract: a `Card` is all that the template shows of a study; no file is read here but X-rays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from markupsafe import Markup

from configs.schema import RewardConfig
from learner.evaluation.bootstrap import Array
from learner.evaluation.finished import components_of
from learner.evaluation.measures import FINDING_COLUMNS
from learner.evaluation.pictures import picture
from learner.evaluation.worst import Case
from learner.report.data import PolicyRecord
from learner.report.findings import Comparison, compare_texts
from reward_server.spec import reward_terms
from rrg.data.study import Study
from rrg.model.drawing import significant

EACH: Final = 20
"""Studies of each group in a run's report: a page of 60 X-rays stays below 2 MB."""

_UNBOUNDED: Final = ("radcliq", "embedded")
"""Components that are no shares of 1 have names that start so."""

_COUNTS: Final = ("words", *FINDING_COLUMNS)


@dataclass(frozen=True)
class Bar:
    """One bar from `start` over `width` % of its track; `mark` is the place of the mean of all test studies."""

    name: str
    value: float
    mean: float
    start: float
    width: float
    mark: float


@dataclass(frozen=True)
class Earlier:
    """What another policy wrote for the study."""

    title: str
    texts: Comparison
    reward: float | None


@dataclass(frozen=True)
class Card:
    """One study. `group` is "best", "median", "worst" or "", `codes` the data set's findings where it has some,
    `colours` those of the regions drawn; `earlier` the report that RL began with."""

    id: str
    group: str
    figure: Markup
    colours: Mapping[str, str]
    texts: Comparison
    codes: tuple[str, ...] | None
    abnormal: bool
    reward: float | None
    scores: Mapping[str, float]
    terms: tuple[Bar, ...] = ()
    components: tuple[Bar, ...] = ()
    earlier: Earlier | None = None

    @property
    def findings(self) -> tuple[str, ...]:
        """All findings that anyone names for the study."""
        named = (*self.texts.matched, *self.texts.missed, *self.texts.invented, *(self.codes or ()))
        return tuple(sorted(set(named)))

    @property
    def told(self) -> str:
        """All scores as text; counts are whole numbers."""
        return ", ".join(f"{name} {value:.{0 if name in _COUNTS else 3}f}" for name, value in self.scores.items())

    @property
    def words(self) -> str:
        """What the search looks through."""
        texts = (*self.texts.reference, *self.texts.hypothesis)
        return " ".join([self.id.lower(), *("".join(piece.text for piece in one.pieces) for one in texts)])


def card_of(case: Case, group: str = "") -> Card:
    """What a study shows without the bars."""
    texts = compare_texts(case.row.reference, case.row.hypothesis)
    codes = None if case.study is None or case.study.findings is None else tuple(sorted(case.study.findings))
    return Card(
        id=case.row.id,
        group=group,
        figure=Markup(picture(case.study, case.evidence)),
        colours={one.region: colour for one, colour in significant(case.evidence)},
        texts=texts,
        codes=codes,
        abnormal=bool(texts.matched or texts.missed) if codes is None else bool(codes),
        reward=case.scores.get("reward"),
        scores=case.scores,
    )


def choose(rewards: Sequence[float], each: int = EACH) -> dict[int, str]:
    """The group by index of the studies to show, best first: `each` at the top, in the middle and at the bottom; all
    studies where there are no more than that. Studies without a reward are left out."""
    order = sorted((i for i, reward in enumerate(rewards) if np.isfinite(reward)), key=lambda i: (-rewards[i], i))
    each = min(each, -(-len(order) // 3))
    middle = max(each, (len(order) - each) // 2)
    groups = dict.fromkeys(order[:each], "best")
    groups |= dict.fromkeys(order[middle : max(middle, min(middle + each, len(order) - each))], "median")
    return groups | {i: "worst" for i in order[each:][-each:] if i not in groups}


def gallery(
    last: PolicyRecord, earlier: PolicyRecord | None, studies: Mapping[str, Study], cfg: RewardConfig | None
) -> list[Card]:
    """The cards of a run: `last` wrote the reports, those of `earlier` are shown beside them. Bars need the measures of
    single studies, those of the reward's terms `cfg` too. Raises UserError for an X-ray that cannot be read."""
    rewards = last.per_study.get("reward")
    groups = dict.fromkeys(range(len(last.rows))[: 3 * EACH], "") if rewards is None else choose(rewards.tolist())
    components = components_of(last.per_study)
    terms = _terms(components, cfg) if cfg is not None and components else {}
    others = {name: values for name, values in components.items() if name not in terms}
    before = {} if earlier is None else {row.id: index for index, row in enumerate(earlier.rows)}
    cards = []
    for index, group in groups.items():
        row = last.rows[index]
        scores = {} if rewards is None else {"reward": float(rewards[index])}
        card = card_of(Case(row, studies.get(row.id), scores, last.evidence.get(row.id, ())), group)
        old = None if earlier is None or row.id not in before else _earlier(earlier, before[row.id])
        bars = _term_bars(terms, index)
        cards.append(replace(card, terms=bars, components=_component_bars(others, index), earlier=old))
    return cards


def _earlier(policy: PolicyRecord, index: int) -> Earlier:
    row, rewards = policy.rows[index], policy.per_study.get("reward")
    texts = compare_texts(row.reference, row.hypothesis)
    return Earlier(policy.title, texts, None if rewards is None else float(rewards[index]))


def _terms(components: Mapping[str, Array], cfg: RewardConfig) -> dict[str, Array]:
    """What each component adds to the reward, [studies]."""
    count = len(next(iter(components.values())))
    rows = [reward_terms({n: float(v[i]) for n, v in components.items()}, cfg) for i in range(count)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _term_bars(terms: Mapping[str, Array], index: int) -> tuple[Bar, ...]:
    """Signed: from the middle of the track to the left or right; all studies on one scale."""
    most = max((float(np.abs(values).max()) for values in terms.values()), default=0.0) or 1.0
    bars = []
    for name, values in terms.items():
        value, mean = float(values[index]), float(values.mean())
        end = 50 + 50 * value / most
        bars.append(Bar(name, value, mean, min(50.0, end), abs(end - 50), 50 + 50 * mean / most))
    return tuple(bars)


def _component_bars(components: Mapping[str, Array], index: int) -> tuple[Bar, ...]:
    """Components that are shares of 1, as they are."""
    shares = {name: values for name, values in components.items() if not name.startswith(_UNBOUNDED)}
    return tuple(
        Bar(name, float(v[index]), float(v.mean()), 0.0, 100 * _share(float(v[index])), 100 * _share(float(v.mean())))
        for name, v in shares.items()
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
