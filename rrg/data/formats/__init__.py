"""Data set formats, one module each: from files in their official layout to studies.

Contract: `FORMATS[name](source, log)` yields the studies one at a time, with the text as it stands in the files (outer
white space stripped), images frontal first, nothing decoded. A bad record goes to the log and is left out. A study
with an empty findings section is yielded: what to do about it is for `rrg.data.dataset` to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from rrg.data.formats import kaggle, mimic_cxr, openi, r2gen, rexrank, table
from rrg.data.formats.source import Source
from rrg.data.study import Study
from rrg.data.studyset import ProblemLog

Reader = Callable[[Source, ProblemLog], Iterator[Study]]

FORMATS: Final[Mapping[str, Reader]] = {
    "r2gen": r2gen.read,
    "mimic_cxr": mimic_cxr.read,
    "openi": openi.read,
    "kaggle": kaggle.read,
    "rexrank": rexrank.read,
    "jsonl": table.read_jsonl,
    "csv": table.read_csv,
}

__all__ = ["FORMATS", "Reader", "Source"]
