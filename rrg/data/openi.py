"""The real reports of Open-i (Indiana University chest X-ray collection), from the `torchxrayvision` wheel.

The wheel carries the official 3,955 XML files (`data/NLMCXR_reports.tgz`, CC BY-NC-ND 4.0); the package is found but
never imported, since importing it needs torchvision. The split is R2Gen's (2,069 / 296 / 590 studies with a findings
section): its study ids are kept in `r2gen_split_ids.json` beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

from defusedxml import ElementTree

from rrg.data.study import Split
from rrg.data.studyset import SPLITS, ProblemLog
from rrg.errors import UserError

_ARCHIVE: Final = "data/NLMCXR_reports.tgz"
_SPLIT_IDS: Final = Path(__file__).with_name("r2gen_split_ids.json")
_SECTIONS: Final = {"FINDINGS": "findings", "IMPRESSION": "impression", "INDICATION": "indication",
                    "COMPARISON": "comparison"}  # fmt: skip


@dataclass(frozen=True)
class OpeniRecord:
    """One XML file: its number, the raw sections by name ("findings", ...), and the MeSH codes."""

    number: int
    sections: dict[str, str]
    mesh: tuple[str, ...]

    @property
    def indexed(self) -> bool:
        """Whether anybody coded the report; without codes nothing is known about its findings."""
        return bool(self.mesh) and "No Indexing" not in self.mesh


def find_archive() -> Path:
    """Path of the report archive; `UserError` when the package that carries it isn't installed."""
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _ARCHIVE
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
    except ElementTree.ParseError as error:
        raise ValueError(f"not well-formed XML ({error})") from error
    uid = root.find("uId")
    match = re.fullmatch(r"CXR(\d+)", uid.get("id", "") if uid is not None else "")
    if match is None:
        raise ValueError("no <uId id='CXRn'>")
    sections = dict.fromkeys(_SECTIONS.values(), "")
    for element in root.iter("AbstractText"):
        name = _SECTIONS.get(element.get("Label", ""))
        if name is not None:
            sections[name] = (element.text or "").strip()
    mesh = tuple(code.text.strip() for code in root.findall("MeSH/major") if code.text)
    return OpeniRecord(int(match.group(1)), sections, mesh)


def read_records(archive: Path, log: ProblemLog) -> dict[int, OpeniRecord]:
    """All records of the archive by number; unreadable ones go to `log`."""
    records: dict[int, OpeniRecord] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
            if stream is None:
                continue
            try:
                record = parse_record(stream.read())
            except ValueError as error:
                log.add(f"{archive}:{member.name}", "xml", str(error))
                continue
            records[record.number] = record
    return records


def split_ids() -> Iterator[tuple[Split, str, int]]:
    """(split, study id such as "CXR2384_IM-0942", number of the XML file) of R2Gen's split, in its order."""
    ids: dict[str, str] = json.loads(_SPLIT_IDS.read_text(encoding="utf-8"))
    for split in SPLITS:
        for study_id in ids[split].split():
            yield split, study_id, int(study_id.removeprefix("CXR").split("_")[0])
