"""Statements of a sentence: which finding is present, absent or uncertain, on which side, where, and of what kind.

Contract: pure function of the sentence. The reading is by rules after NegEx (Chapman et al. 2001) and the RadGraph
schema (Jain et al. 2021): observations with a status, `located_at` anatomies, `modify` words. A side belongs to the
finding that it stands with. "The heart is normal" and "no cardiomegaly" give the same statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise

from reward_server.text import lexicon, ontology
from reward_server.text.lexicon import Kind, Mention
from reward_server.text.words import Word

INCOMPLETE = "incomplete"  # a cue without its object: "no focal is seen"

_FINDING_LIKE = frozenset(
    {Kind.FINDING, Kind.ABNORMALITY, Kind.ENLARGED, Kind.CALCIFIED, Kind.ELEVATED, Kind.LOW, Kind.BORDERLINE}
)
_BOUND = frozenset({Kind.ANATOMY, Kind.SIDE, Kind.MODIFIER, Kind.CHANGE})
_JOINING = frozenset({"and", ",", "/", "sided", "side", "bilaterally"})


class Status(Enum):
    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class Statement:
    """One observation.

    `side` is "", "left", "right" or "both". `specific` is false for general ones ("lung abnormality") and for those
    that are neither normal nor abnormal. `words` are the indices of the words that carry the status.
    """

    concept: str
    status: Status
    side: str = ""
    anatomy: frozenset[str] = frozenset()
    modifiers: frozenset[str] = frozenset()
    specific: bool = True
    words: tuple[int, ...] = field(default=(), compare=False)

    @property
    def positive(self) -> bool:
        """Whether it states a finding or a device that is, or may be, there."""
        return self.specific and self.status is not Status.ABSENT


def read_statements(sentence: Sequence[Word]) -> list[Statement]:
    """The statements of one sentence, in order; `sentence` as `words.words` gives it."""
    statements: list[Statement] = []
    clause: list[Mention] = []
    for mention in [*lexicon.find_mentions(sentence), Mention(Kind.BREAK, "end", len(sentence), len(sentence))]:
        if mention.kind is Kind.BREAK:
            statements += _Clause(clause, sentence).statements()
            clause = []
        else:
            clause.append(mention)
    return statements


class _Clause:
    """The mentions between two breaks."""

    def __init__(self, mentions: list[Mention], sentence: Sequence[Word]) -> None:
        self.sentence = sentence
        self.mentions = _settle(mentions)
        self.findings = [i for i, m in enumerate(self.mentions) if m.kind in _FINDING_LIKE]

    def statements(self) -> list[Statement]:
        taken, result = self._normal_statements()
        bound: dict[int, list[Mention]] = {i: [] for i in self.findings}
        loose: list[Mention] = []
        for i, mention in enumerate(self.mentions):
            if mention.kind in _BOUND and i not in taken:
                owners = self._owners(i)
                for owner in owners:
                    bound[owner].append(mention)
                if not owners:
                    loose.append(mention)
        for i in self.findings:
            result += self._finding_statements(i, bound[i])
        if not result:
            result += self._other_statements(loose)
        return result

    def _normal_statements(self) -> tuple[set[int], list[Statement]]:
        """Statements of "normal", "clear", ... about the anatomies next to them, and the mentions that these use up."""
        taken: set[int] = set()
        result = []
        for i, mention in enumerate(self.mentions):
            if mention.kind is not Kind.NORMAL or self._negated(i):
                continue
            anatomies = self._run(range(i - 1, -1, -1)) or self._run(range(i + 1, len(self.mentions)))
            for j in anatomies:
                name = self.mentions[j].value
                result.append(
                    Statement(
                        ontology.NORMAL_OF.get(name, f"{name} abnormality"),
                        Status.ABSENT,
                        specific=name in ("heart", "airspace"),
                        words=tuple(range(mention.start, mention.end)),
                    )
                )
            taken.update(anatomies)
            if anatomies:
                span = range(min(i, *anatomies) - 1, max(i, *anatomies) + 2)
                taken.update(j for j, m in enumerate(self.mentions) if j in span and m.kind in (Kind.SIDE, Kind.CHANGE))
        return taken, result

    def _run(self, indices: Iterable[int]) -> list[int]:
        """The anatomies along `indices` up to a finding, a negation or another "normal"."""
        run: list[int] = []
        for j in indices:
            kind = self.mentions[j].kind
            if kind in _FINDING_LIKE and run and run[-1] == j - 1:
                run.pop()  # the anatomy that stands directly before a finding is the finding's
            if kind in _FINDING_LIKE or kind in (Kind.NO, Kind.NORMAL):
                break
            if kind is Kind.ANATOMY:
                run.append(j)
        return run

    def _owners(self, i: int) -> list[int]:
        """The findings that the anatomy, side or modifier at `i` belongs to."""
        for j in range(i + 1, len(self.mentions)):
            mention = self.mentions[j]
            if mention.kind in _FINDING_LIKE:
                return [j]  # stands before it: "left lower lobe opacity"
            if mention.kind not in _BOUND and self._text(mention) not in _JOINING:
                break
        before = [j for j in self.findings if j < i]
        after = [j for j in self.findings if j > i]
        if self.mentions[i].kind is Kind.MODIFIER:
            return []
        if before and self._placed(i):
            return self._coordinated(before)
        return after[:1] or before[-1:]

    def _placed(self, i: int) -> bool:
        """Whether a preposition leads to the mention at `i` with no finding in between."""
        for j in range(i - 1, -1, -1):
            kind = self.mentions[j].kind
            if kind is Kind.PLACE:
                return True
            if kind not in _BOUND and kind is not Kind.FUNCTION:
                return False
        return False

    def _coordinated(self, before: list[int]) -> list[int]:
        """The last of the findings and those joined to it by "and", "or" or a comma."""
        owners = [before[-1]]
        for j in reversed(before[:-1]):
            between = self.mentions[j + 1 : owners[-1]]
            if not all(m.kind in _BOUND or m.kind is Kind.EITHER or self._text(m) in _JOINING for m in between):
                break
            owners.append(j)
        return owners

    def _text(self, mention: Mention) -> str:
        return " ".join(word.base for word in self.sentence[mention.start : mention.end])

    def _negated(self, i: int) -> bool:
        return any(m.kind is Kind.NO for m in self.mentions[:i])

    def _status(self, i: int) -> Status:
        if self._negated(i) or any(m.kind is Kind.NOT_SEEN for m in self.mentions[i + 1 :]):
            return Status.ABSENT
        for mention in self.mentions[i + 1 :]:
            if mention.kind is Kind.NORMAL and mention.value == "limits":
                return Status.ABSENT  # "vascular engorgement within limits of normal"
            if mention.kind in _FINDING_LIKE or mention.kind is Kind.ANATOMY:
                break
        maybe = any(m.kind is Kind.MAYBE for m in self.mentions[:i])
        before = any(m.kind is Kind.MAYBE_BEFORE for m in self.mentions[i + 1 :])
        borderline = self.mentions[i].kind is Kind.BORDERLINE
        return Status.UNCERTAIN if self._either(i) or maybe or before or borderline else Status.PRESENT

    def _either(self, i: int) -> bool:
        """Whether "or" or "versus" joins the finding at `i` to another."""
        place = self.findings.index(i)
        for first, second in pairwise(self.findings[max(0, place - 1) : place + 2]):
            between = self.mentions[first + 1 : second]
            joined = all(m.kind in _BOUND or m.kind in (Kind.EITHER, Kind.FUNCTION) for m in between)
            if joined and any(m.kind is Kind.EITHER for m in between):
                return True
        return False

    def _finding_statements(self, i: int, bound: Sequence[Mention]) -> list[Statement]:
        mention = self.mentions[i]
        anatomies = [m.value for m in bound if m.kind is Kind.ANATOMY]
        sides = [m.value.split(" ", 1) for m in bound if m.kind is Kind.SIDE]
        anatomies += [words[1] for words in sides if len(words) == 2]
        status = self._status(i)
        # "No large effusion" and "no effusion" say the same for our purpose.
        modifiers = {m.value for m in bound if m.kind is Kind.MODIFIER and status is not Status.ABSENT}
        template = Statement(
            "",
            status,
            side=_side({words[0] for words in sides}),
            modifiers=frozenset(modifiers),
            words=tuple(range(mention.start, mention.end)),
        )
        if mention.kind is Kind.ABNORMALITY:
            names = [ontology.NORMAL_OF.get(name, f"{name} abnormality") for name in dict.fromkeys(anatomies)]
            if not names and status is Status.ABSENT:
                names = ["abnormality"]
            return [
                replace(template, concept=name, specific=name in ("cardiomegaly", "consolidation")) for name in names
            ]
        concept = ontology.concept_of(mention, anatomies)
        if concept is None:
            return []
        own = ontology.OWN_ANATOMY.get(concept, frozenset())
        result = [replace(template, concept=concept, anatomy=frozenset(anatomies) - own - {"airspace"})]
        if "airspace" in anatomies and "lung" not in own:
            # "focal airspace pleural effusion": the word has lost its noun.
            result.append(Statement(INCOMPLETE, status, specific=False, words=template.words))
        return result

    def _other_statements(self, loose: Sequence[Mention]) -> list[Statement]:
        """What a clause without finding says: that something is unchanged, or nothing at all."""
        change = next((m for m in self.mentions if m.kind is Kind.CHANGE), None)
        if change is not None:
            words = tuple(range(change.start, change.end))
            names = [m.value for m in loose if m.kind is Kind.ANATOMY]
            return [Statement(f"{change.value} {name}", Status.PRESENT, specific=False, words=words) for name in names]
        cue = next((m for m in self.mentions if m.kind is Kind.NO), None)
        if cue is None:
            return []
        known = {i for m in self.mentions for i in range(m.start, m.end)}
        if all(i in known for i in range(cue.end, self.mentions[-1].end)) and self._ends_clause():
            return [Statement(INCOMPLETE, Status.ABSENT, specific=False, words=tuple(range(cue.start, cue.end)))]
        return []

    def _ends_clause(self) -> bool:
        """Whether no unknown word follows the last mention."""
        end = self.mentions[-1].end
        return end == len(self.sentence) or lexicon.starts_break(self.sentence, end)


def _settle(mentions: Sequence[Mention]) -> list[Mention]:
    """Words like "prominent" or "calcified" describe a finding that follows; alone they are the finding."""
    settled: list[Mention] = []
    for i, mention in enumerate(mentions):
        follows = next((m.kind for m in mentions[i + 1 :] if m.kind not in _BOUND), None)
        own_kind = mention.kind in (Kind.ENLARGED, Kind.CALCIFIED, Kind.BORDERLINE)
        if own_kind and follows in _FINDING_LIKE and follows is not Kind.ABNORMALITY:
            mention = replace(mention, kind=Kind.MODIFIER)
        settled.append(mention)
    return settled


def _side(sides: set[str]) -> str:
    if not sides:
        return ""
    return sides.pop() if len(sides) == 1 else "both"
