"""Reports of a saved policy for a split of its data set, written by `actors.writer` in this process.

Contract: reports are appended to a JSON-lines file as their batch is finished, so a killed call goes on where it was;
the file belongs to one checkpoint and one set of studies, and is refused for others. What was seen in the regions lies
beside it (`evidence_file`), a line a study, and is gone on with in the same way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.checkpoint import Checkpoint, find_checkpoint, weights_sha256
from actors.writer import BATCH, ReportWriter
from configs.load import read_saved, resolve
from configs.schema import Config
from learner.checkpoints import latest_checkpoint
from rrg.data import Study, StudySet
from rrg.data.imagecache import batches
from rrg.data.study import Split
from rrg.errors import UserError
from rrg.model.evidence import evidence_line
from rrg.model.saved import policy_in
from rrg.progress import Show

Row = dict[str, str]


def run_config(run_dir: Path) -> Config:
    """The config of the run in `run_dir`. Raises UserError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist: --run must be the directory of a run of learner.main")
    return resolve(read_saved(path))


def policy_folder(run_dir: Path, checkpoint: str) -> Path:
    """The policy of "warm_start", of the "latest" or "best" RL checkpoint, or in a folder given by path.

    Raises UserError where it is not there.
    """
    if checkpoint == "latest":
        newest = latest_checkpoint(run_dir / "checkpoints")
        if newest is None:
            raise UserError(f"{run_dir}/checkpoints holds no RL checkpoint; use --checkpoint warm_start")
        return newest / "policy"
    if checkpoint == "best":
        return find_checkpoint(run_dir, "best").policy
    folder = run_dir / "warm_start" if checkpoint == "warm_start" else Path(checkpoint)
    found = policy_in(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no policy (policy.json): --checkpoint warm_start, latest, best, or a folder of one"
        )
    return found


def evidence_file(out: Path) -> Path:
    """Where the evidence of the reports in `out` lies: `<out>.evidence.jsonl`, a line {id, regions} a study."""
    return out.with_name(out.name + ".evidence.jsonl")


def generate_reports(
    cfg: Config, policy: Path, studies: StudySet, split: Split, out: Path, show: Show, limit: int | None = None
) -> list[Row]:
    """{id, reference, hypothesis} of every study of `split` (the first `limit`), in order; `out` holds them too, and
    `evidence_file(out)` their evidence.

    Raises UserError where `out` is of another policy or other studies, or the split is empty.
    """
    chosen = studies.split(split)[:limit]
    if not chosen:
        raise UserError(f"the data set has no study in split {split}")
    done = _open(out, _signature(cfg, policy, studies, split))
    shown = _whole_lines(evidence_file(out))
    missing = [study for study in chosen if study.id not in done or study.id not in shown]
    if missing:
        _generate(cfg, policy, missing, out, show, done, set(shown))
    return [{"id": s.id, "reference": s.target, "hypothesis": done[s.id]["hypothesis"]} for s in chosen]


def _generate(
    cfg: Config, policy: Path, studies: Sequence[Study], out: Path, show: Show, done: dict[str, Any], shown: set[str]
) -> None:
    """Appends what either file lacks; `done` gets the reports."""
    checkpoint = Checkpoint(policy.name, policy, cfg.data, cfg.model, cfg.rollout, of_run=True)
    device = "cuda" if cfg.rollout.gpus_per_actor > 0 else "cpu"
    finished = 0
    with (
        out.open("a", encoding="utf-8") as file,
        evidence_file(out).open("a", encoding="utf-8") as beside,
        ReportWriter(checkpoint, device) as writer,
    ):
        for batch in batches(writer.write_all(studies), BATCH):
            for written in batch:
                if written.failed is not None:
                    raise UserError(f"a report could not be written: {written.failed}")
                study = written.study
                if study.id not in shown:
                    beside.write(evidence_line(study.id, written.evidence))
                if study.id not in done:
                    done[study.id] = {"id": study.id, "reference": study.target, "hypothesis": written.report}
                    file.write(json.dumps(done[study.id]) + "\n")
            for each in (beside, file):
                each.flush()
                os.fsync(each.fileno())
            finished += len(batch)
            show.advance("reports", finished, len(studies))


def _signature(cfg: Config, policy: Path, studies: StudySet, split: Split) -> dict[str, str]:
    """What a file of reports must agree in to be gone on with."""
    return {
        "policy_sha256": weights_sha256(policy),
        "studies": studies.fingerprint,
        "split": split,
        "max_new_tokens": str(cfg.rollout.max_new_tokens),
    }


def _open(out: Path, signature: dict[str, str]) -> dict[str, Any]:
    """The rows that `out` holds already, by id."""
    side = out.with_name(out.name + ".meta.json")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        side.write_text(json.dumps(signature, indent=2) + "\n")
        out.touch()
        evidence_file(out).unlink(missing_ok=True)  # of reports that somebody deleted
        return {}
    if not side.is_file() or json.loads(side.read_text()) != signature:
        raise UserError(f"{out} holds reports of another policy or other studies; delete it or choose another --out")
    return _whole_lines(out)


def _whole_lines(path: Path) -> dict[str, Any]:
    """The rows of a file by id (none if it is not there); a line that a killed call left unfinished is cut off."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return {row["id"]: row for row in map(json.loads, whole.splitlines())}
