"""What a report says: positive findings, their regions, and the sentences about each region.

`findings_in` is a lexicon with scopes of negation, in the way of NegEx (Chapman et al., J Biomed Inform 2001): a
phrase counts unless a negation governs it. Only abnormal wording makes a finding, so all ways of saying "normal"
("heart size within normal limits", "the heart is normal in size") give the same: nothing. Hedged findings ("may
represent atelectasis", "possible effusion") count, as the indexers of Open-i counted them; excluded ones ("rule out
pneumonia", "less likely infiltrate") don't.

Sentences find their regions by a lexicon of the regions' words and of the findings that each region can hold, as Chest
ImaGenome's scene graphs were made (Wu et al., NeurIPS Datasets and Benchmarks 2021; after the vocabulary of RadLex,
Langlotz, RadioGraphics 2006). `python -m benchmarks.region_sentences` measures how well, against coded reports.

It shares no rule with the reward server, so that finding F1 is an independent judge of what the reward trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from rrg.data.findings import Sign, Zone, labels_of, usual_zone
from rrg.data.lexicon import FINDING_PHRASES, NOT_A_FINDING
from rrg.data.region_words import REGION_WORDS
from rrg.data.regions import REGIONS, SIDES, Side
from rrg.data.sections import clean, sentences

# A negation governs what follows it, up to a word that starts another statement ...
_NEGATION: Final = re.compile(
    r"\b(?:no|not|without|negative for|free of|clear of|absence of|absent|never|neither|nor|non|denies|"
    r"rule out|ruled out|exclude|excluded|less likely|rather than|unlikely|resolution of|resolved|removal of|"
    r"interval removal|instead of|clearing of|removed)\b"
)
_SCOPE_END: Final = re.compile(
    r"\b(?:but|however|although|though|except|other than|there is|there are|there has|which|aside from|apart from|"
    r"in addition|secondary to|due to|status post|as well as|unchanged|redemonstrated|no longer|noted is|otherwise|"
    r"also (?:noted|seen)|again (?:noted|seen)|stable|consistent with|compatible with|with (?:mild|small|a)|"
    r"heart|cardiac silhouette|cardiomediastinal|mediastinum|lungs|change|changes in)\b"
)
# ... and some follow what they deny.
_DENIED_AFTER: Final = re.compile(
    r"^(?:\sappears?)?\swithin (?:normal )?limits\b|"
    r"^(?:\s\S+){0,4}?\s(?:(?:is|are|was|were|has been|have been|has|have)\s)?"
    r"(?:not (?:seen|identified|present|visualized|demonstrated|evident|appreciated|significantly|enlarged)|"
    r"resolved|removed|absent|excluded|unlikely|no longer (?:seen|present|visualized|identified)|cleared)\b"
)
_SIDE_WORDS: Final[Mapping[Side, re.Pattern[str]]] = MappingProxyType(
    {
        "right": re.compile(r"\bright\b|\bmiddle lobe\b"),
        "left": re.compile(r"\bleft\b|\blingul\w*"),
    }
)
_BOTH: Final = re.compile(r"\bbilateral\w*|\bbibasilar\b|\bbibasal\b|\bbiapical\b|\bboth\b|\bbases\b|\bapices\b")
_ZONE_WORDS: Final[tuple[tuple[re.Pattern[str], Zone], ...]] = (
    (re.compile(r"\bribs?\b"), "ribs"),
    (re.compile(r"\bclavic\w+"), "clavicle"),
    (re.compile(r"\babdom\w+|\bupper quadrant\b|\bcholecystectomy\b"), "abdomen"),
    (re.compile(r"\bhil(?:ar|um|a)\b|\bperihilar\b"), "hilum"),
    (re.compile(r"\bap(?:ex|ices|ical)\b|\bbiapical\b"), "apex"),
    (re.compile(r"\bmiddle lobe\b|\blingul\w*|\bmid ?lung\b|\bmidlung\b"), "mid"),
    (re.compile(r"\bupper (?:lobe|lung|zone)s?\b"), "upper"),
    (re.compile(r"\bbas(?:e|es|al|ilar)\b|\bbibasilar\b|\blower (?:lobe|lung|zone)s?\b|\bretrocardiac\b"), "lower"),
    (re.compile(r"\bmediast\w+|\bstern\w+"), "chest"),
)


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    return {finding: re.compile("|".join(f"(?:{p})" for p in FINDING_PHRASES[finding])) for finding in FINDING_PHRASES}


@cache
def _region_patterns() -> dict[str, re.Pattern[str]]:
    return {region: re.compile(REGION_WORDS[region]) for region in REGIONS}


def _denied(sentence: str, start: int, end: int) -> bool:
    """Whether a negation governs the phrase sentence[start:end]."""
    for cue in _NEGATION.finditer(sentence, 0, end):
        if cue.start() >= start or not _SCOPE_END.search(sentence, cue.end(), start):
            return True
    return _DENIED_AFTER.match(sentence[end:]) is not None


@dataclass(frozen=True)
class Mention:
    """A phrase that states a finding: sentence[start:end]."""

    finding: str
    start: int
    end: int


def mentions_in(sentence: str) -> list[Mention]:
    """The phrases of one cleaned sentence that state findings; they may overlap, and repeat a finding."""
    text, places = _without_lures(sentence)
    return [
        Mention(finding, places[match.start()], places[match.end() - 1] + 1)
        for finding, pattern in _patterns().items()
        for match in pattern.finditer(text)
        if not _denied(text, match.start(), match.end())
    ]


def _without_lures(sentence: str) -> tuple[str, list[int]]:
    """The sentence with a space for every phrase of `NOT_A_FINDING`, and where each of its characters stood."""
    places = list(range(len(sentence)))
    for phrase in NOT_A_FINDING:
        for match in reversed(list(phrase.finditer(sentence))):
            start, end = match.span()
            sentence = f"{sentence[:start]} {sentence[end:]}"
            places[start:end] = [places[start]]
    return sentence, places


def _positives(sentence: str) -> set[str]:
    """The findings that one cleaned sentence states."""
    return {mention.finding for mention in mentions_in(sentence)}


def findings_in(text: str) -> frozenset[str]:
    """The codes of `FINDINGS` that the text states (raw or cleaned); what it denies or doesn't mention is not in."""
    return frozenset().union(*(_positives(sentence) for sentence in sentences(clean(text))))


def _sides_in(sentence: str) -> tuple[Side, ...]:
    named = tuple(side for side in SIDES if _SIDE_WORDS[side].search(sentence))
    return SIDES if not named or _BOTH.search(sentence) else named


def _signs(sentence: str) -> list[Sign]:
    """The findings that a cleaned sentence states, on the side and in the zone that it names."""
    zone = next((zone for words, zone in _ZONE_WORDS if words.search(sentence)), None)
    sides = _sides_in(sentence)
    return [Sign(finding, sides, zone or usual_zone(finding)) for finding in sorted(_positives(sentence))]


def findings_by_region(text: str) -> dict[str, frozenset[str]]:
    """The findings that the text states, by region: side and zone are those that their sentence names."""
    return labels_of(sign for sentence in sentences(clean(text)) for sign in _signs(sentence))[1]


def region_sentences(text: str) -> dict[str, list[str]]:
    """The cleaned sentences about each region, normal ones too; regions without one are left out.

    A sentence that states findings is about the regions of those findings. Any other is about the regions whose words
    it has: one about an organ of both sides ("the lungs are clear") belongs to both.
    """
    found: dict[str, list[str]] = {}
    for sentence in sentences(clean(text)):
        signs = _signs(sentence)
        for region in _regions_of(signs) if signs else _regions_named(sentence):
            found.setdefault(region, []).append(sentence)
    return found


def _regions_of(signs: Sequence[Sign]) -> list[str]:
    holding = frozenset().union(*(sign.regions for sign in signs))
    return [region for region in REGIONS if region in holding]


def _regions_named(sentence: str) -> list[str]:
    """The regions that have a word in the sentence, on the sides that it names."""
    sides = _sides_in(sentence)
    other = tuple(side for side in SIDES if side not in sides)
    patterns = _region_patterns()
    return [region for region in REGIONS if not region.startswith(other) and patterns[region].search(sentence)]
