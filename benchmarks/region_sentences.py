"""How well the words of a report find its regions: matched sentences and text-derived significance against the truth.

`python -m benchmarks.region_sentences [--split test] [--errors 20]`: on the reports of rendered Open-i, whose MeSH
codes (a person's reading) give the findings of every region. For each region:

- stating: (sentence, finding) pairs matched to it; precision: the region does have that finding; recall: of the
  findings that the region has and the report states, those that one of its sentences states. A sentence that states
  findings of two regions is matched to both and makes a wrong pair in each, so "sent." tells the share of these
  sentences that state at least one of the region's findings.
- normal: matched sentences that state nothing; share of them whose region has no finding.
- significance: regions that the text calls abnormal (`findings_by_region`), against those that are.

`--errors`: the most frequent wrong and missed pairs with their numbers; no report text is printed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from configs.schema import DataConfig
from rrg.data import REGIONS, Study, load_studies
from rrg.data.mentions import findings_by_region, findings_in, region_sentences


@dataclass
class Hits:
    """Right ones among those that were claimed, and among those that were to be found."""

    right: int = 0
    claimed: int = 0
    found: int = 0
    wanted: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.claimed if self.claimed else float("nan")

    @property
    def recall(self) -> float:
        return self.found / self.wanted if self.wanted else float("nan")


@dataclass
class Matching:
    """All counts of one region."""

    stating: Hits = field(default_factory=Hits)
    sentences: Hits = field(default_factory=Hits)
    normal: Hits = field(default_factory=Hits)
    significance: Hits = field(default_factory=Hits)
    wrong: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def add(self, spoken: Sequence[str], stated: frozenset[str], abnormal: bool, truth: frozenset[str]) -> None:
        """One study: sentences about the region, findings that its report states anywhere, whether the text calls the
        region abnormal, and the findings that it has."""
        said: set[str] = set()
        for sentence in spoken:
            findings = findings_in(sentence)
            said |= findings
            self.stating.claimed += len(findings)
            self.stating.right += len(findings & truth)
            self.wrong.update(findings - truth)
            self.sentences.claimed += bool(findings)
            self.sentences.right += bool(findings & truth)
            if not findings:
                self.normal.claimed += 1
                self.normal.right += not truth
        self.stating.wanted += len(truth & stated)
        self.stating.found += len(truth & stated & said)
        self.missed.update((truth & stated) - said)
        self.significance.claimed += abnormal
        self.significance.wanted += bool(truth)
        self.significance.right += abnormal and bool(truth)
        self.significance.found += abnormal and bool(truth)


def measure(studies: Iterable[Study]) -> dict[str, Matching]:
    """The counts of every region over the studies that somebody coded."""
    counts = {region: Matching() for region in REGIONS}
    for study in studies:
        if study.region_findings is None:
            continue
        text = study.report.findings
        spoken, by_region, stated = region_sentences(text), findings_by_region(text), findings_in(text)
        for region, matching in counts.items():
            matching.add(spoken.get(region, []), stated, bool(by_region[region]), study.region_findings[region])
    return counts


def _total(counts: dict[str, Matching], part: Callable[[Matching], Hits]) -> Hits:
    parts = [part(matching) for matching in counts.values()]
    return Hits(*(sum(vars(hits)[name] for hits in parts) for name in vars(Hits())))


def _line(name: str, stating: Hits, whole: Hits, normal: Hits, significance: Hits) -> str:
    return (
        f"{name:25s} {stating.claimed:6d} {stating.precision:6.3f} {stating.recall:6.3f} {whole.precision:6.3f}"
        f"   {normal.claimed:6d} {normal.precision:6.3f}"
        f"   {significance.wanted:6d} {significance.precision:6.3f} {significance.recall:6.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=["train", "val", "test", "all"], default="test")
    parser.add_argument("--errors", type=int, default=0, help="print so many of the most frequent errors")
    args = parser.parse_args()
    studies = load_studies(DataConfig(name="rendered_openi", workers=1))
    counts = measure(study for study in studies if args.split in ("all", study.split))
    print(f"{'':25s} {'stating':>27s}   {'normal':>13s}   {'significance':>20s}")
    print("{:25s} {:>6s} {:>6s} {:>6s} {:>6s}   {:>6s} {:>6s}   {:>6s} {:>6s} {:>6s}".format(
        "region", "pairs", "prec", "recall", "sent.", "sent.", "right", "true", "prec", "recall"))  # fmt: skip
    parts: tuple[Callable[[Matching], Hits], ...] = (
        lambda m: m.stating,
        lambda m: m.sentences,
        lambda m: m.normal,
        lambda m: m.significance,
    )
    for region, matching in counts.items():
        print(_line(region, *(part(matching) for part in parts)))
    print(_line("all", *(_total(counts, part) for part in parts)))
    if args.errors:
        for name in ("wrong", "missed"):
            errors = Counter({(r, f): n for r, m in counts.items() for f, n in vars(m)[name].items()})
            print(
                f"\n{name}:",
                *(f"{region} / {f}: {n}" for (region, f), n in errors.most_common(args.errors)),
                sep="\n  ",
            )


if __name__ == "__main__":
    main()
