"""A file of reports that a killed batch goes on with: JSON lines, one a study.

Contract: a study has one line or none, whenever the process ends: lines are made durable as their studies are written,
an unfinished last line is cut off when the file is opened again, and two processes can't have it open at once. The
file belongs to one policy and to its studies' images: it is refused for others. (A picture that was replaced under the
same path isn't noticed.)

| field | |
|---|---|
| `id` | of the study: as the data set has it, or the path below the folder |
| `report` | what the policy wrote |
| `cut` | true where the report was not at its end at the longest length of the policy's run |
| `evidence` | the significant regions, the most significant first: `region`, `significance`, `findings` (probabilities), `box` (x0, y0, x1, y1 as fractions of the first frontal image's padded square, or null), `sentence` (or null) |
| `images` | `path` and `view` of each |
| `reference` | the text of the data set that the policy learnt to write such, where there is one |
| `checkpoint` | `name`, and `sha256` of the policy's weights |
"""  # noqa: E501

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from actors.checkpoint import Checkpoint
from actors.writer import Written
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.drawing import significant

Row = dict[str, Any]
# How a line begins: an unfinished one of another kind of file is not cut off.
_BEGIN: Final = b'{"id": '


def row_of(written: Written, checkpoint: Checkpoint) -> Row:
    """The line of a study as an object."""
    study = written.study
    row: Row = {
        "id": study.id,
        "report": written.report,
        "cut": written.cut,
        "evidence": [asdict(one) for one, _ in significant(written.evidence)],
        "images": _images(study),
    }
    reference = {"reference": study.target} if study.target else {}
    return {**row, **reference, "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256}}


class ReportFile:
    """The file, open to append to; `done` are the ids of the studies that it holds."""

    def __init__(self, path: Path, checkpoint: Checkpoint, studies: Mapping[str, Study]) -> None:
        """Opens or makes it. Raises UserError where it can't be written, holds reports of another policy or of other
        studies or images, or another process has it open."""
        self.path = path
        self._checkpoint = checkpoint
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"--out {path}: can't be written ({error.strerror or error})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done = self._read(studies)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                f"--out {path}: another process is writing to it; wait for it, or choose another"
            ) from error
        except UserError:
            self._file.close()
            raise

    def append(self, written: Sequence[Written]) -> None:
        """Adds the studies that have a report; when it returns, they outlive the process and the machine."""
        rows = [row_of(one, self._checkpoint) for one in written if one.failed is None]
        self._file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done |= {row["id"] for row in rows}

    def reports(self) -> dict[str, str]:
        """The report of every study so far, by id."""
        return {row["id"]: row["report"] for row, _ in self._rows()}

    def __enter__(self) -> ReportFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self, studies: Mapping[str, Study]) -> set[str]:
        """The ids of the file's whole lines; what is behind them is cut off."""
        done: set[str] = set()
        whole = 0
        for row, end in self._rows():
            whole = end
            study = studies.get(row["id"])
            if row["checkpoint"]["sha256"] != self._checkpoint.sha256:
                other = f"reports of another policy ({row['checkpoint']['name']})"
            elif study is None or row["images"] != _images(study):
                other = f"a study that is not among these, or has other images ({row['id']})"
            else:
                done.add(row["id"])
                continue
            raise UserError(f"--out {self.path} holds {other}; delete it or choose another file")
        self._file.truncate(whole)
        return done

    def _rows(self) -> Iterator[tuple[Row, int]]:
        """The rows of the file, and where each one's line ends."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            unfinished = not line.endswith(b"\n")
            if unfinished and line[: len(_BEGIN)] == _BEGIN[: len(line)]:
                return
            end += len(line)
            try:
                row = json.loads(b"" if unfinished else line)
                row["id"], row["report"], row["images"], row["checkpoint"]["sha256"], row["checkpoint"]["name"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"--out {self.path}, line {number}: not a line of this command's reports") from error
            yield row, end


def _images(study: Study) -> list[dict[str, str]]:
    return [{"path": str(image.path.resolve()), "view": image.view} for image in study.images]
