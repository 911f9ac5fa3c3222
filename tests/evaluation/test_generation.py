"""Reports of a saved policy, written by the real engine: the same again, and gone on with after a kill."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from configs.schema import Config, DataConfig, LLMConfig, ModelConfig, RewardConfig, RolloutConfig
from learner.generation import evidence_file, generate_reports, policy_folder, run_config
from rrg.data import StudySet, load_studies
from rrg.errors import UserError
from rrg.model.backbone import make_store
from rrg.model.build import build_policy, save_policy
from rrg.model.evidence import read_evidence_file
from rrg.progress import Show

# In a process of its own: an engine leaves its settings in the environment and its process group in torch.
WRITE = """
import pickle, sys
from pathlib import Path
from rich.console import Console
from learner.generation import generate_reports
from rrg.progress import Show
from rrg.data import load_studies
cfg, policy, out = pickle.loads(sys.stdin.buffer.read())
generate_reports(cfg, policy, load_studies(cfg.data), "test", out, Show(Console(stderr=True)))
"""


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    llm = LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, vocab_size=400)
    cache = str(tmp_path_factory.mktemp("cache"))
    return Config(
        data=DataConfig("rendered_openi", cache_dir=cache, limit_train=20, limit_val=0, limit_test=6, workers=1),
        model=ModelConfig(llm=llm, extractor_size=64),
        rollout=RolloutConfig(max_new_tokens=12, max_num_seqs=16, kv_cache_mib=32, max_model_len=128, timeout_s=60),
        reward=RewardConfig(),
    )


@pytest.fixture(scope="module")
def studies(cfg: Config) -> StudySet:
    return load_studies(cfg.data)


@pytest.fixture(scope="module")
def policy(cfg: Config, studies: StudySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    store = make_store(cfg.data, cfg.model)
    places = {"grid": store.grid, "channels": store.channels, "cache_dir": cfg.data.cache_dir, "target": "findings"}
    made = build_policy(cfg.model, [study.target for study in studies] * 20, 0, **places)
    with torch.no_grad():
        made.extractor.significance.bias.zero_()  # some regions are significant
    save_policy(made, folder)
    return folder


@pytest.fixture(scope="module")
def written(cfg: Config, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "reports.jsonl"
    given = pickle.dumps((cfg, policy, out))
    done = subprocess.run([sys.executable, "-c", WRITE], input=given, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return out


def test_every_test_study_has_its_report_in_the_order_of_the_data_set(written: Path, studies: StudySet) -> None:
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["id"] for row in rows] == [study.id for study in studies.split("test")]
    assert [row["reference"] for row in rows] == [study.target for study in studies.split("test")]
    assert all(row["hypothesis"] for row in rows)


def test_a_file_that_is_complete_is_read_and_not_written_again(
    written: Path, cfg: Config, policy: Path, studies: StudySet
) -> None:
    before = written.read_text()
    rows = generate_reports(cfg, policy, studies, "test", written, Show(Console(quiet=True)), limit=4)
    assert [json.dumps(row) for row in rows] == before.splitlines()[:4]
    assert written.read_text() == before


def write_again(cfg: Config, policy: Path, out: Path) -> None:
    given = pickle.dumps((cfg, policy, out))
    subprocess.run([sys.executable, "-c", WRITE], input=given, capture_output=True, timeout=300, check=True)


def test_the_evidence_lies_beside_the_reports_a_line_a_study(written: Path, studies: StudySet) -> None:
    evidence = read_evidence_file(evidence_file(written))
    assert evidence_file(written).name == "reports.jsonl.evidence.jsonl"
    assert list(evidence) == [study.id for study in studies.split("test")]
    assert all(len(regions) == 29 for regions in evidence.values())
    assert any(one.sentence for regions in evidence.values() for one in regions)


@pytest.mark.parametrize(("reports", "evidence"), [(0.5, 0.8), (0.8, 0.5), (1.0, 0.0)])
def test_a_killed_call_goes_on_after_the_last_whole_lines_of_both_files(
    reports: float, evidence: float, written: Path, cfg: Config, policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "reports.jsonl"
    texts = {out: written.read_text(), evidence_file(out): evidence_file(written).read_text()}
    for (path, whole), share in zip(texts.items(), (reports, evidence), strict=True):
        path.write_text(whole[: int(len(whole) * share)])
    (tmp_path / "reports.jsonl.meta.json").write_text(written.with_name("reports.jsonl.meta.json").read_text())
    write_again(cfg, policy, out)
    for path, whole in texts.items():
        assert path.read_text() == whole


def test_the_best_policy_is_the_one_that_the_run_announces(cfg: Config, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    for step in (10, 15, 20):
        folder = tmp_path / "checkpoints" / f"step_1_{step:06d}" / "policy"
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text("{}")
    (tmp_path / "checkpoints" / "best").write_text("step_1_000015")
    assert policy_folder(tmp_path, "best") == tmp_path / "checkpoints" / "step_1_000015" / "policy"


def test_a_file_of_another_policy_is_refused(written: Path, cfg: Config, policy: Path, studies: StudySet) -> None:
    longer = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, max_new_tokens=13))
    with pytest.raises(UserError, match="another policy or other studies"):
        generate_reports(longer, policy, studies, "test", written, Show(Console(quiet=True)))


def test_a_split_without_a_study_and_a_folder_without_a_policy_are_refused(
    cfg: Config, policy: Path, studies: StudySet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no study in split val"):
        generate_reports(cfg, policy, studies, "val", tmp_path / "out.jsonl", Show(Console(quiet=True)))
    with pytest.raises(UserError, match="no RL checkpoint"):
        policy_folder(tmp_path, "latest")
    with pytest.raises(UserError, match="neither a run directory"):
        policy_folder(tmp_path, "best")
    with pytest.raises(UserError, match="holds no policy"):
        policy_folder(tmp_path, "warm_start")
    with pytest.raises(UserError, match=r"config\.yaml does not exist"):
        run_config(tmp_path)
    assert policy_folder(tmp_path, str(policy)) == policy
