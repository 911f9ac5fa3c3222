"""`load_studies`: the studies that a config names, ready for training.

`rendered_openi`: real Open-i reports (R2Gen's split) with frontal X-rays *rendered* from each report's MeSH codes:
synthetic pictures, called "rendered" wherever they show up. All other names are formats of real data
(`rrg.data.formats`), whose studies are prepared here, the same way for each: text cleaned, limits, studies without
findings by `data.without_findings`, finding labels read from the report's text where the format carries none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast, get_args

from configs.schema import DataConfig
from rrg.data import rendercache
from rrg.data.findings import Sign, labels_of, signs_from_mesh
from rrg.data.formats import FORMATS, Source, openi
from rrg.data.mentions import findings_by_region, findings_in
from rrg.data.render import VERSION, boxes_of
from rrg.data.rendercache import Progress
from rrg.data.sections import clean
from rrg.data.study import Image, Report, Split, Study, Target
from rrg.data.studyset import ProblemLog, StudySet
from rrg.errors import UserError

RENDERED = "rendered_openi"
SOURCES = (RENDERED, *FORMATS)

Limits = Mapping[Split, int | None]


def load_studies(cfg: DataConfig, progress: Progress | None = None) -> StudySet:
    """The studies of `cfg.name`, at most `cfg.limit_*` of each split (the first ones, in the data set's order).

    Images are not decoded. Missing rendered images are made by `cfg.workers` processes and cached; `progress` is told
    (name, done, total). Raises `UserError` for an unknown name, a wrong root, a split without a usable study, and,
    with `cfg.strict`, for the first bad record.
    """
    limits: dict[Split, int | None] = {"train": cfg.limit_train, "val": cfg.limit_val, "test": cfg.limit_test}
    log = ProblemLog(cfg.strict)
    settings: dict[str, object] = {"name": cfg.name, "image_size": cfg.image_size}
    if cfg.name == RENDERED:
        studies = _rendered_openi(cfg, limits, log, progress)
        settings["renderer"] = VERSION
    else:
        studies = list(prepare(read_studies(cfg, log), limits, cfg.without_findings, target_of(cfg), log))
        settings |= {"views": cfg.views, "without_findings": cfg.without_findings}
    if not studies:
        first = f" First of {len(log.problems)} problems: {log.problems[0]}" if log.problems else ""
        skipped = "".join(f" {count} skipped: {reason}." for reason, count in log.skipped.items())
        raise UserError(f"data={cfg.name} ({cfg.root or 'built in'}) has no usable study.{first}{skipped}")
    return StudySet(studies, log.problems, settings, log.skipped)


def read_studies(cfg: DataConfig, log: ProblemLog) -> Iterator[Study]:
    """The studies of a format of real data as they stand in its files; `UserError` for a wrong config."""
    if cfg.name not in FORMATS:
        raise UserError(f"data.name={cfg.name!r} is unknown; one of {', '.join(SOURCES)}")
    if cfg.root is None:
        raise UserError(f"data={cfg.name} needs data.root=DIR, where the data set lies")
    root = Path(cfg.root)
    if not root.exists():
        raise UserError(f"data.root={root} does not exist")
    source = Source(root, _path(cfg.reports), _path(cfg.imagenome), cfg.views)
    return FORMATS[cfg.name](source, log)


def target_of(cfg: DataConfig) -> Target:
    """`data.target`; raises `UserError` for an unknown one."""
    for target in get_args(Target):
        if cfg.target == target:
            return cast(Target, target)
    raise UserError(f"data.target={cfg.target!r} is unknown; one of {', '.join(get_args(Target))}")


def prepare(
    studies: Iterable[Study], limits: Limits, without_findings: str, target: Target, log: ProblemLog
) -> Iterator[Study]:
    """Studies as models want them, one at a time; reads no further than `limits` asks for."""
    left = dict(limits)
    seen: set[str] = set()
    for study in studies:
        if all(count == 0 for count in left.values()):
            return
        remaining = left[study.split]
        if remaining == 0:
            continue
        ready = _prepared(study, without_findings, target)
        if isinstance(ready, str):
            log.skip(ready)
            continue
        if study.id in seen:
            log.add(f"{study.source} data set: study {study.id}", "id", "occurs twice; the first is kept")
            continue
        seen.add(study.id)
        left[study.split] = None if remaining is None else remaining - 1
        yield ready


def _prepared(study: Study, without_findings: str, target: Target) -> Study | str:
    """The study ready for training, or why it can't be learnt from."""
    sections = {name: clean(text) for name, text in vars(study.report).items()}
    if not sections["findings"] and without_findings == "impression" and target == "findings":
        sections["findings"] = sections["impression"]
    if target != "impression" and not sections["findings"]:
        return f"no findings section (data.without_findings={without_findings})"
    if target != "findings" and not sections["impression"]:
        return f"no impression section (data.target={target})"
    study = replace(study, report=Report(**sections), target_sections=target)
    text = study.target
    findings, by_region = study.findings, study.region_findings
    if findings is None and by_region is not None:
        findings = frozenset(chain.from_iterable(by_region.values()))
    spoken = study.region_sentences
    return replace(
        study,
        region_sentences=spoken and {region: tuple(map(clean, texts)) for region, texts in spoken.items()},
        findings=findings_in(text) if findings is None else findings,
        region_findings=findings_by_region(text) if by_region is None else by_region,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _rendered_openi(cfg: DataConfig, limits: Limits, log: ProblemLog, progress: Progress | None) -> list[Study]:
    archive = openi.find_archive()
    records = openi.read_records(archive, log)
    folder = rendercache.folder_of(Path(cfg.cache_dir))
    studies: list[Study] = []
    signs_of: dict[str, tuple[Sign, ...]] = {}
    counts = dict.fromkeys(limits, 0)
    target = target_of(cfg)
    for split, study_id, number in openi.split_ids():
        limit = limits[split]
        if limit is not None and counts[split] >= limit:
            continue
        record = records.get(number)
        if record is None or not clean(record.sections["findings"]):
            log.add(f"{archive}:{number}.xml", "FINDINGS", f"missing or empty, and study {study_id} needs it")
            continue
        if target != "findings" and not clean(record.sections["impression"]):
            log.skip(f"no impression section (data.target={target})")
            continue
        counts[split] += 1
        signs_of[study_id] = signs_from_mesh(record.mesh)
        study = _rendered(study_id, split, record, signs_of[study_id], folder)
        studies.append(replace(study, target_sections=target))
    rendercache.render_missing(folder, signs_of, cfg.workers, progress)
    return studies


def _rendered(study_id: str, split: Split, record: openi.OpeniRecord, signs: tuple[Sign, ...], folder: Path) -> Study:
    """One study; a report that nobody coded is drawn as normal, with unknown (None) findings."""
    findings, by_region = labels_of(signs)
    return Study(
        id=study_id,
        split=split,
        images=(Image(rendercache.path_of(folder, study_id), "frontal"),),
        report=Report(**{name: clean(text) for name, text in record.sections.items()}),
        source=RENDERED,
        findings=findings if record.indexed else None,
        region_findings=by_region if record.indexed else None,
        boxes=boxes_of(study_id, signs),
    )
