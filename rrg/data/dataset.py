"""`load_studies`: the studies that a config names.

Two sources. `rendered_openi`: real Open-i reports (R2Gen's split) with frontal X-rays *rendered* from each report's
MeSH codes: synthetic pictures, called "rendered" wherever they show up. `r2gen`: any data set in R2Gen's layout, with
its own X-rays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from configs.schema import DataConfig
from rrg.data import openi, r2gen, rendercache
from rrg.data.findings import Sign, labels_of, signs_from_mesh
from rrg.data.render import VERSION, boxes_of
from rrg.data.rendercache import Progress
from rrg.data.sections import clean
from rrg.data.study import Image, Report, Split, Study
from rrg.data.studyset import ProblemLog, StudySet
from rrg.errors import UserError

SOURCES = ("rendered_openi", "r2gen")


def load_studies(cfg: DataConfig, progress: Progress | None = None) -> StudySet:
    """The studies of `cfg.name`, at most `cfg.limit_*` of each split (the first ones, in the data set's order).

    Images are not decoded. Missing rendered images are made by `cfg.workers` processes and cached; `progress` is told
    (name, done, total). Raises `UserError` for an unknown name, a wrong root, a split without a usable study, and,
    with `cfg.strict`, for the first bad record.
    """
    limits: dict[Split, int | None] = {"train": cfg.limit_train, "val": cfg.limit_val, "test": cfg.limit_test}
    log = ProblemLog(cfg.strict)
    if cfg.name == "rendered_openi":
        studies = _rendered_openi(cfg, limits, log, progress)
        version = VERSION
    elif cfg.name == "r2gen":
        if cfg.root is None:
            raise UserError("data=r2gen needs data.root=DIR, the folder with annotation.json and images/")
        studies = r2gen.read_studies(Path(cfg.root), limits, log)
        version = ""
    else:
        raise UserError(f"data.name={cfg.name!r} is unknown; one of {', '.join(SOURCES)}")
    if not studies:
        first = f" First of {len(log.problems)} problems: {log.problems[0]}" if log.problems else ""
        raise UserError(f"data={cfg.name} ({cfg.root or 'built in'}) has no usable study.{first}")
    settings = {"name": cfg.name, "image_size": cfg.image_size, "renderer": version}
    return StudySet(studies, log.problems, settings)


def _rendered_openi(
    cfg: DataConfig, limits: Mapping[Split, int | None], log: ProblemLog, progress: Progress | None
) -> list[Study]:
    archive = openi.find_archive()
    records = openi.read_records(archive, log)
    folder = rendercache.folder_of(Path(cfg.cache_dir))
    studies: list[Study] = []
    signs_of: dict[str, tuple[Sign, ...]] = {}
    counts = dict.fromkeys(limits, 0)
    for split, study_id, number in openi.split_ids():
        limit = limits[split]
        if limit is not None and counts[split] >= limit:
            continue
        record = records.get(number)
        if record is None or not clean(record.sections["findings"]):
            log.add(f"{archive}:{number}.xml", "FINDINGS", f"missing or empty, and study {study_id} needs it")
            continue
        counts[split] += 1
        signs_of[study_id] = signs_from_mesh(record.mesh)
        studies.append(_study(study_id, split, record, signs_of[study_id], folder))
    rendercache.render_missing(folder, signs_of, cfg.workers, progress)
    return studies


def _study(study_id: str, split: Split, record: openi.OpeniRecord, signs: tuple[Sign, ...], folder: Path) -> Study:
    """One study; a report that nobody coded is drawn as normal, with unknown (None) findings."""
    findings, by_region = labels_of(signs)
    return Study(
        id=study_id,
        split=split,
        images=(Image(rendercache.path_of(folder, study_id), "frontal"),),
        report=Report(**{name: clean(text) for name, text in record.sections.items()}),
        source="rendered_openi",
        findings=findings if record.indexed else None,
        region_findings=by_region if record.indexed else None,
        boxes=boxes_of(study_id, signs),
    )
