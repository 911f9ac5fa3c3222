"""What the warm start has the language model write: reports with their findings first, and captions of regions.

Contract: pure functions of a study (and a seed); texts are cleaned ones (`rrg.data.sections.clean`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from rrg.data.mentions import findings_in, region_sentences
from rrg.data.sections import sentences
from rrg.data.study import IMPRESSION_MARK, Study

# Captions are short, since they are padded to the longest of a batch; nineteen of twenty are whole.
_MOST_WORDS: Final = 24

# Reports whose splitting is remembered: MIMIC-CXR has too many to keep them all.
_TEXTS_KEPT: Final = 1 << 14

# Region: what is to be written about it.
Captions = Mapping[str, str]


def study_text(study: Study) -> str:
    """The study's target, findings first."""
    return " ".join(part for part in findings_first(study.target) if part)


@lru_cache(maxsize=_TEXTS_KEPT)
def findings_first(report: str) -> tuple[str, str]:
    """The sentences of a cleaned report that state a finding, and the others, each in their order; an impression that
    follows `IMPRESSION_MARK` stays as it is, among the others.

    The order of a report's sentences is the radiologist's habit. With a finding anywhere, each is improbable at any one
    place, and the most probable report is always a normal one; with findings first, the image decides the first word.
    """
    parts = sentences(report)
    mark = IMPRESSION_MARK.removesuffix(" .")
    end = parts.index(mark) if mark in parts else len(parts)
    stating = [part for part in parts[:end] if findings_in(part)]
    others = [part for part in parts[:end] if not findings_in(part)] + parts[end:]
    return "".join(f"{part} . " for part in stating).strip(), "".join(f"{part} . " for part in others).strip()


def choose_captions(study: Study, regions: Sequence[str], count: int, seed: str) -> Captions:
    """Up to `count` of `regions` that the study has sentences about, with them: those with findings first, then others,
    each drawn by `seed` and the study. Empty where nothing speaks of a region."""
    spoken = region_texts(study)
    names = [name for name in regions if name in spoken] if count else []
    random.Random(f"{seed}/captions/{study.id}").shuffle(names)
    found = study.region_findings or {}
    names.sort(key=lambda name: not found.get(name))
    return {name: spoken[name] for name in names[:count]}


def region_texts(study: Study) -> Mapping[str, str]:
    """What is said of each region, findings first: the data set's own region sentences, else those of the findings
    section by lexicon."""
    if study.region_sentences is None:
        return _spoken(study.report.findings)
    return {region: _caption(texts) for region, texts in study.region_sentences.items() if texts}


@lru_cache(maxsize=_TEXTS_KEPT)
def _spoken(findings: str) -> Mapping[str, str]:
    return {region: _caption(tuple(texts)) for region, texts in region_sentences(findings).items()}


@lru_cache(maxsize=_TEXTS_KEPT)
def _caption(texts: tuple[str, ...]) -> str:
    """Whole sentences up to `_MOST_WORDS`, the first one in any case."""
    kept: list[str] = []
    words = 0
    for text in sorted(texts, key=lambda text: not findings_in(text)):
        words += len(text.split())
        if kept and words > _MOST_WORDS:
            break
        kept.append(f"{text.removesuffix('.').strip()} .")
    return " ".join(kept)
