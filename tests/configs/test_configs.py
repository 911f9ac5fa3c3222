"""The configuration: what composes, what is refused with which words, and what a dry run shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from configs.check import COMPONENTS
from configs.load import compose_config
from configs.schema import Config
from learner import plan
from learner.checkpoints import config_hash
from learner.main import of_run
from reward_server.spec import reward_from_components
from rrg.errors import UserError

ROOT = Path(__file__).parents[2]


def config(*overrides: str) -> Config:
    return compose_config(overrides)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "learner.main", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_default_is_the_demo() -> None:
    default, demo = config(), config("+exp=demo")
    default.output_dir = demo.output_dir  # Named by the time of the run.
    assert default == demo


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/exp").glob("*.yaml")))
def test_every_experiment_composes_and_passes_the_check(name: str) -> None:
    assert config(f"+exp={name}", "data.root=/data", "reward.weights=/weights").name == name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+foo=1", "foo"),
        ("+learner.rl.foo=1", "foo"),
        ("rollout.samples_per_study=0", r"rollout\.samples_per_study=0: must be above 0"),
        ("learner.rl.lr=0", "learner.rl.lr"),
        ("learner.zero_stage=4", "zero_stage"),
        ("model.dtype=bfloat16", "float32"),
        ("model.llm.num_heads=16", "multiple of 32"),
        ("data.limit_test=3", "shuffle gap"),
        ("data=r2gen", "data.root"),
        ("data=mimic_cxr", "data.root"),
        ("data.name=dicom", "mimic_cxr, openi, kaggle, rexrank"),
        ("data.views=lateral", "all or frontal"),
        ("data.without_findings=drop", "skip or impression"),
        ("data.imagenome=/imagenome", "data.name=mimic_cxr"),
        ("data.target=labels", "findings, impression or both"),
        ("stage=rl", "regions, warm_start or all"),
        ("model.llm.train=freeze", "full or lora"),
        ("model.llm.broadcast=adapter", r"without model\.llm\.train=lora"),
        ("model.llm.lora.rank=0", r"model\.llm\.lora\.rank=0: must be above 0"),
        ("model.llm.lora.alpha=0", r"model\.llm\.lora\.alpha=0: must be above 0"),
        ("model.llm.lora.dropout=1.5", r"model\.llm\.lora\.dropout=1\.5: must be a share"),
        ("model.backbone.lora.rank=0", r"model\.backbone\.lora\.rank=0: must be above 0"),
        ("model.backbone.lora.alpha=-1", r"model\.backbone\.lora\.alpha=-1: must be above 0"),
        ("model.backbone.lora.dropout=-0.1", r"model\.backbone\.lora\.dropout=-0\.1: must be a share"),
        ("model.extractor_size=0", r"model\.extractor_size=0: must be above 0"),
        ("model.extractor_size=250", r"extractor_size=250 is not divisible by model\.extractor_heads=4: set one"),
        ("model.extractor_heads=0", r"model\.extractor_heads=0: must be above 0"),
        ("model.extractor_heads=-4", r"model\.extractor_heads=-4: must be above 0"),
        ("model.extractor_layers=0", r"model\.extractor_layers=0: must be above 0"),
        ("model.global_tokens=-1", r"model\.global_tokens=-1: must not be below 0 \(0 leaves them out\)"),
        ("model.prompt.max_context_tokens=0", r"max_context_tokens=0: must be above 0 \(model\.prompt\.context=\[\]"),
        ("learner.sft.epochs=-1", r"learner\.sft\.epochs=-1: must not be below 0"),
        ("learner.sft.regions_epochs=-0.5", r"learner\.sft\.regions_epochs=-0\.5: must not be below 0"),
        ("learner.sft.regions_lr=0", r"learner\.sft\.regions_lr=0\.0: must be above 0"),
        ("learner.sft.finding_token_weight=-1", r"finding_token_weight=-1: must not be below 0"),
        ("learner.sft.region_weight=-1", r"region_weight=-1: must not be below 0"),
        ("learner.sft.significance_weight=-1", r"significance_weight=-1: must not be below 0"),
        ("learner.sft.attention_weight=-1", r"attention_weight=-1: must not be below 0"),
        ("learner.sft.caption_weight=-1", r"caption_weight=-1: must not be below 0"),
        ("model.backbone.train=all", "frozen, full or lora"),
        ("model.prompt.template='findings :'", r"\{images\} exactly once"),
        ("model.prompt.indication='why'", r"\{text\} exactly once"),
        ("model.prompt.context=[age]", "views, indication, comparison"),
        ("model.prompt.context=[views]", r"has no \{context\}"),
        ("rollout.tensor_parallel=2", r"rollout\.gpus_per_actor=2"),
        ("rollout.weights=ipc", r"rollout\.weights=ipc: object_store or nccl"),
        ("rollout.weights=nccl", r"NCCL takes no two processes on one.*or rollout\.weights=object_store"),
        ("rollout.weights=nccl model.llm.broadcast=adapter", "an adapter is small, use object_store"),
        ("rollout.weights=nccl rollout.timeout_s=500", r"rollout\.timeout_s > learner\.timeout_s / 2"),
        ("learner.rl.minibatches=3", "multiple"),
        ("rollout.max_staleness=-1", r"must not be below 0 \(0: synchronous\)"),
        ("learner.sft.checkpoint_every=-1", r"checkpoint_every=-1: must not be below 0"),
        ("learner.gpus_per_rank=1", "both on GPUs or both on CPUs"),
        ("reward=published", r"reward\.weights is not set.*weights fetch"),
        ("reward.backend=radcliq", "embedded, published, reference"),
        ("reward.device=cuda", "embedded backend runs on CPUs"),
        ("cluster.reward_nodes=gpu", "auto, own or any"),
        ("cluster.learner_nodes=own", "is for clusters"),
        ("reward.composite=radcliq_v1", "embedded has embedded"),
        ("+reward.component_weights.semb=1", r"component_weights\.semb.*graph_f1"),
        ("reward.token_file=/token", r"give it, or leave them out"),
    ],
)
def test_a_bad_value_or_combination_is_refused_with_its_name_and_the_way_out(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config(override)


def test_every_part_of_the_model_can_be_switched_off_but_not_all_that_is_seen() -> None:
    off = config("model.regions=off", "model.gate=off", "model.captioning=off").model
    assert (off.regions, off.gate, off.captioning) == (False, False, False)
    with pytest.raises(UserError, match="would see nothing of the image"):
        config("model.regions=off", "model.global_tokens=0")
    with pytest.raises(UserError, match="nothing to train"):
        config("model.regions=off", "stage=regions")


def test_a_stage_of_the_warm_start_can_be_left_out_but_not_all_that_is_to_be_trained() -> None:
    assert config("learner.sft.regions_epochs=0").learner.sft.regions_epochs == 0
    assert config("learner.sft.epochs=0").learner.sft.epochs == 0
    with pytest.raises(UserError, match=r"stage=warm_start with .* nothing would be learnt.* or stage=all"):
        config("learner.sft.regions_epochs=0", "learner.sft.epochs=0", "stage=warm_start")
    assert config("learner.sft.regions_epochs=0", "learner.sft.epochs=0").stage == "all"
    with pytest.raises(UserError, match=r"stage=regions with learner\.sft\.regions_epochs=0"):
        config("learner.sft.regions_epochs=0", "stage=regions")


PUBLISHED = ("reward=published", "reward.weights=/weights")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.dtype=bfloat16", "on CPUs is slow"),
        ("reward.dtype=int8", "float32, bfloat16 or float16"),
        ("reward.device=cuda:1", "a GPU of its own"),
        ("reward.composite=embedded", "published has radcliq_v1, radcliq_v0"),
        ("+reward.component_weights.graph_f1=1", "published has radgraph"),
    ],
)
def test_the_published_reward_has_rules_of_its_own(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config(*PUBLISHED, override)


def test_the_published_reward_is_radcliq_v1_and_small_penalties() -> None:
    reward = config(*PUBLISHED).reward
    scores = dict.fromkeys(COMPONENTS["published"], 1.0) | {"radcliq_v1": 2.0}
    assert reward_from_components(scores, reward) == pytest.approx(-2.0 - 0.5 - 0.25)


def test_a_reward_can_be_made_of_weighted_components() -> None:
    reward = config(*PUBLISHED, "+reward.component_weights={bertscore: 2, semb: 0.5}", "reward.length_weight=0").reward
    scores = dict.fromkeys(COMPONENTS["published"], 1.0)
    assert reward_from_components(scores, reward) == pytest.approx(2.0 + 0.5 - 0.5)
    one = config(*PUBLISHED, "+reward.component_weights.radgraph=1").reward
    assert one.component_weights == {"radgraph": 1.0}


def test_servers_that_run_already_need_no_weights_here() -> None:
    assert config("reward=published", "reward.address='10.0.0.1:50051,10.0.0.2:50051'").reward.weights is None
    assert config("reward.address=127.0.0.1:1", "reward.token_file=/token").reward.token_file == "/token"
    with pytest.raises(UserError, match="through TLS only"):
        config("reward.address='127.0.0.1:1,10.0.0.2:1'", "reward.token_file=/token")


def test_the_components_of_the_rules_are_those_of_the_backends() -> None:
    from reward_server.backends import BACKENDS, embedded, published, reference

    assert tuple(COMPONENTS) == BACKENDS
    for name, module in (("embedded", embedded), ("published", published), ("reference", reference)):
        assert set(COMPONENTS[name]) == set(module.COMPONENTS)


def test_reward_workers_on_gpus_are_counted() -> None:
    cfg = config(*PUBLISHED, "reward.device=cuda", "reward.num_workers=2")
    assert [role.gpus * role.count for role in plan.roles(cfg) if role.name == "reward"] == [2.0]


def test_missing_files_of_the_reward_are_named_before_anything_starts(tmp_path: Path) -> None:
    out = command("reward=published", f"reward.weights={tmp_path}/gone", f"output_dir={tmp_path}/run")
    assert out.returncode == 2
    assert f"reward.weights={tmp_path}/gone does not exist" in out.stderr
    assert out.stderr.count("\n") == 2
    assert not (tmp_path / "run").exists()


def test_all_broken_rules_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)learner\.rl\.lr.*samples_per_study"):
        config("rollout.samples_per_study=1", "learner.rl.lr=0")


def test_a_dry_run_prints_the_config_and_the_plan_and_makes_nothing(tmp_path: Path) -> None:
    out = command("dry_run=true", f"output_dir={tmp_path / 'run'}")
    assert out.returncode == 0, out.stderr
    assert "samples_per_study: 8" in out.stdout
    assert "DeepSpeed rank" in out.stdout
    assert not (tmp_path / "run").exists()


def test_the_real_job_names_the_missing_data_and_gpus(tmp_path: Path) -> None:
    out = command("+exp=mimic_rl", f"data.root={tmp_path}", f"reward.weights={tmp_path}/weights")
    assert out.returncode == 2
    assert f"{tmp_path}/mimic-cxr-2.0.0-split.csv" in out.stderr
    assert "GPUs: the config asks for 8" in out.stderr
    assert f"reward.weights={tmp_path}/weights does not exist" in out.stderr
    assert "Traceback" not in out.stderr


def test_a_typo_on_the_command_line_is_named_without_a_traceback() -> None:
    out = command("learner.rl.stepz=3")
    assert out.returncode != 0
    assert "stepz" in out.stderr
    assert "Traceback" not in out.stderr


def test_configs_and_plan_import_without_torch() -> None:
    code = "import sys, configs.load, learner.plan; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "False"


def test_phases_take_turns_so_their_threads_do_not_add_up() -> None:
    cfg = config("rollout.threads=1", "reward.threads=1", "learner.threads=2")
    assert plan.busy_threads(cfg) == 2
    assert plan.logical_cpus(cfg) == 3


def test_a_resumed_run_must_exist(tmp_path: Path) -> None:
    out = command(f"resume={tmp_path / 'gone'}")
    assert out.returncode == 2
    assert "gone/config.yaml does not exist" in out.stderr


def test_a_resumed_run_keeps_its_config_and_refuses_another(tmp_path: Path) -> None:
    begun = OmegaConf.structured(config("+exp=smoke", "seed=3", f"output_dir={tmp_path}"))
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(begun))
    out = command(f"resume={tmp_path}", "dry_run=true")
    assert out.returncode == 0, out.stderr
    assert "name: smoke" in out.stdout
    assert "seed: 3" in out.stdout
    out = command(f"resume={tmp_path}", "seed=4")
    assert out.returncode == 2
    assert "leave out seed=4" in out.stderr


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("learner.num_ranks=2", True),
        ("learner.rl.steps=40", True),
        ("learner.rl.stop.max_kl=null", True),
        ("rollout.num_actors=2", True),
        ("learner.rl.lr=1e-5", False),
        ("learner.zero_stage=2", False),
        ("stage=warm_start", False),
        ("start=elsewhere", False),
        ("output_dir=elsewhere", False),
        ("learner=ray", False),
        ("+exp=demo", False),
    ],
)
def test_a_resumed_run_may_be_made_longer_moved_and_watched_and_nothing_else(
    tmp_path: Path, override: str, allowed: bool
) -> None:
    begun = OmegaConf.structured(config("+exp=smoke", f"output_dir={tmp_path}"))
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(begun))
    overrides = [f"resume={tmp_path}", override]
    if allowed:
        cfg = of_run(str(tmp_path), overrides)
        name, value = override.split("=")
        assert OmegaConf.select(OmegaConf.structured(cfg), name) == (None if value == "null" else int(value))
        assert config_hash(cfg) == config_hash(of_run(str(tmp_path), overrides[:1]))
    else:
        with pytest.raises(UserError, match=re.escape(f"leave out {override}")):
            of_run(str(tmp_path), overrides)


def test_a_run_that_ended_with_the_warm_start_can_go_on_into_rl(tmp_path: Path) -> None:
    for stage, status in (("warm_start", 0), ("regions", 2)):
        begun = OmegaConf.structured(config("+exp=smoke", f"stage={stage}", f"output_dir={tmp_path}"))
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(begun))
        out = command(f"resume={tmp_path}", "stage=all", "dry_run=true")
        assert out.returncode == status, out.stderr
        assert ("stage: all" in out.stdout) == (status == 0)


def test_an_unwritable_output_dir_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text(os.fspath(tmp_path))
    out = command(f"output_dir={blocker}/run")
    assert out.returncode == 2
    assert "output_dir" in out.stderr
