"""Reports of a saved policy for a split of its data set: greedy decoding by the vLLM engine, in this process, no Ray.

Contract: reports are appended to a JSON-lines file as their batch is finished, so a killed call goes on where it was;
the file belongs to one checkpoint and one set of studies, and is refused for others. What was seen in the regions lies
beside it (`evidence_file`), a line a study, and is gone on with in the same way. Beam search is not offered: vLLM
has none for prompts of embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from actors.engine import RolloutEngine
from actors.env import rollout_env
from actors.samples import Prompt, Sample, Sampling
from configs.load import resolve
from configs.schema import Config
from learner.checkpoints import latest_checkpoint
from rrg.data import Study, StudySet
from rrg.data.study import Split
from rrg.errors import UserError
from rrg.model.evidence import Evidence, evidence_line
from rrg.progress import Show

# Reports that a killed call loses at most.
BATCH = 64
Row = dict[str, str]


def run_config(run_dir: Path) -> Config:
    """The config of the run in `run_dir`. Raises UserError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist: --run must be the directory of a run of learner.main")
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return resolve(loaded)


def policy_folder(run_dir: Path, checkpoint: str) -> Path:
    """The policy of "warm_start", of the "latest" RL checkpoint, or in a folder given by path.

    Raises UserError where it is not there.
    """
    if checkpoint == "latest":
        newest = latest_checkpoint(run_dir / "checkpoints")
        if newest is None:
            raise UserError(f"{run_dir}/checkpoints holds no RL checkpoint; use --checkpoint warm_start")
        return newest / "policy"
    folder = run_dir / "warm_start" if checkpoint == "warm_start" else Path(checkpoint)
    if (folder / "policy" / "policy.json").is_file():
        return folder / "policy"
    if not (folder / "policy.json").is_file():
        raise UserError(f"{folder} holds no policy (policy.json); --checkpoint warm_start, latest or a folder with one")
    return folder


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
    finished = 0
    with out.open("a", encoding="utf-8") as file, evidence_file(out).open("a", encoding="utf-8") as beside:
        for batch, texts, evidence in _batches(cfg, policy, studies):
            for study, text, regions in zip(batch, texts, evidence, strict=True):
                if study.id not in shown:
                    beside.write(evidence_line(study.id, regions))
                if study.id not in done:
                    done[study.id] = {"id": study.id, "reference": study.target, "hypothesis": text}
                    file.write(json.dumps(done[study.id]) + "\n")
            for each in (beside, file):
                each.flush()
                os.fsync(each.fileno())
            finished += len(batch)
            show.advance("reports", finished, len(studies))


def _batches(
    cfg: Config, folder: Path, studies: Sequence[Study]
) -> Iterator[tuple[Sequence[Study], list[str], list[Evidence]]]:
    os.environ |= rollout_env(cfg.rollout)  # vLLM reads it when it is imported
    import torch

    from actors.evidence import draft_evidence, write_sentences
    from actors.weights import keep_embeddings_alone
    from rrg.model.backbone import make_store
    from rrg.model.build import load_policy
    from rrg.model.lora import merged_state_dict

    torch.set_num_threads(cfg.rollout.threads)
    store = make_store(cfg.data, cfg.model)
    policy = load_policy(folder)  # on the CPU: the device is to hold the LLM once, in the engine
    engine = RolloutEngine(folder / "llm", cfg.rollout, cfg.model.dtype)
    engine.load_weights(merged_state_dict(policy.llm), version=0)
    keep_embeddings_alone(policy)
    policy.to("cuda" if cfg.rollout.gpus_per_actor > 0 else "cpu")
    sampling = Sampling(cfg.rollout.max_new_tokens, policy.eos_token_id, greedy=True)
    try:
        for start in range(0, len(studies), BATCH):
            batch = studies[start : start + BATCH]
            # One by one, as the rollout actors do: a report does not depend on its batch.
            seen = [(study, *policy.study_prompt(study, store)) for study in batch]
            samples = engine.generate([Prompt(embeds, seed=0) for _, embeds, _ in seen], sampling)
            texts = {sample.index: policy.decode(_tokens(sample)) for sample in samples}
            drafts = [draft_evidence(policy, study, output) for study, _, output in seen]
            yield batch, [texts[index] for index in range(len(batch))], write_sentences(policy, engine, drafts)
    finally:
        engine.close()


def _tokens(sample: Sample) -> list[int]:
    if sample.failed is not None:
        raise UserError(f"a report could not be written: {sample.failed}")
    tokens: list[int] = sample.token_ids.tolist()
    return tokens


def _signature(cfg: Config, policy: Path, studies: StudySet, split: Split) -> dict[str, str]:
    """What a file of reports must agree in to be gone on with."""
    digest = hashlib.sha256()
    for path in sorted(policy.rglob("*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return {
        "policy_sha256": digest.hexdigest(),
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
