"""The RL part of the configuration: which parts of an objective go together, and what the experiments stand for."""

from __future__ import annotations

import re

import pytest

from configs import check_rl
from rrg.errors import UserError
from tests.configs.test_configs import ROOT, config

RL = "learner.rl."


def refused(overrides: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config(*(name if "." in name.split("=")[0] else RL + name for name in overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("advantage=gae", "grpo, dr_grpo, rloo, reinforce_pp_baseline, scst, reinforce_pp, ppo"),
        ("surrogate=ppo", "ppo_clip, gspo, cispo, reinforce"),
        ("reduction=mean", "tokens, sequences, constant"),
        ("learner.rl.kl.place=both", "loss, reward, off"),
        ("learner.rl.kl.place=false", 'loss, reward, off (a bare off in YAML is false: write "off")'),
        ("learner.rl.kl.estimator=k4", "k1, k2, k3"),
        ("learner.rl.correction.mode=clip", "truncate, mask, off"),
        ("learner.rl.correction.level=batch", "token, sequence"),
        ("learner.rl.stop.measures=[bleu4]", "finding_f1, abnormal_reward, unique, shuffle_gap"),
        ("keep_best=loss", "reward, finding_f1, abnormal_reward, unique, shuffle_gap, bleu4, or null"),
    ],
)
def test_a_part_that_does_not_exist_is_refused_with_the_ones_that_do(overrides: str, words: str) -> None:
    refused(overrides, re.escape(words))


@pytest.mark.parametrize(
    "name",
    [
        "lr=0",
        "clip_low=0",
        "clip_high=-0.1",
        "minibatches=0",
        "studies_per_step=0",
        "learner.rl.kl.target=0",
        "learner.rl.kl.horizon=0",
        "learner.rl.kl.coef=-1",
        "entropy_coef=-0.1",
        "region_weight=-1",
        "evaluate_every=-1",
        "evaluate_studies=0",
        "learner.rl.value.clip=0",
        "learner.rl.value.gamma=1.1",
        "learner.rl.value.gae_lambda=-1",
        "learner.rl.value.lr_scale=0",
        "learner.rl.stop.max_kl=0",
        "learner.rl.stop.window=0",
        "learner.rl.stop.collapse=0",
        "learner.rl.stop.patience=0",
        "learner.rl.correction.cap=0.5",
        "abnormal_fraction=2",
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_name(name: str) -> None:
    refused(name, re.escape((name if "." in name.split("=")[0] else RL + name).split("=")[0]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("rollout.samples_per_study=1", "advantage=grpo compares reports of one study, so it needs at least 2"),
        ("advantage=rloo rollout.samples_per_study=1", "at least 2"),
        ("advantage=ppo drop_flat_groups=true", "teach here too"),
        ("advantage=scst drop_flat_groups=true", "teach here too"),
        ("reward.relative_to_constant=true", "changes nothing: .* use reinforce_pp or ppo"),
        ("advantage=scst reward.relative_to_constant=true", "changes nothing"),
        ("learner.rl.value.gamma=0.9", "only ppo has a value head"),
        ("clip_low=1", "only cispo can do without a lower end"),
        ("dual_clip=1", r"dual_clip=1: must be above 1"),
        ("surrogate=cispo dual_clip=3", "it is for ppo_clip and gspo"),
        ("surrogate=reinforce", "minibatches=2: .* set minibatches=1, or surrogate=cispo"),
        ("surrogate=gspo", r"set learner\.rl\.correction\.level=sequence"),
        ("surrogate=gspo advantage=ppo learner.rl.correction.level=sequence", "one advantage a report"),
        ("surrogate=gspo advantage=reinforce_pp learner.rl.correction.mode=off", "one advantage a report"),
        ("learner.rl.kl.estimator=k1", r"zero on average .* set kl\.estimator=k2 or k3, or kl\.place=reward"),
        ("learner.rl.kl.place=reward", r"set kl\.estimator=k1"),
        ("learner.rl.kl.place=reward learner.rl.kl.estimator=k3", r"set kl\.estimator=k1"),
        ("learner.rl.kl.place=off learner.rl.kl.target=0.1", "no coefficient to adapt"),
        ("learner.rl.kl.coef=0 learner.rl.kl.target=0.1", "would stay 0"),
        ("learner.rl.kl.target=0.1 learner.rl.kl.horizon=10", "must be above a fifth of them"),
        ("learner.rl.kl.place=reward learner.rl.kl.estimator=k1", "noise of the KL.*set advantage=dr_grpo, rloo"),
        ("advantage=ppo learner.rl.value.coef=0", "would learn nothing; set it above 0"),
        ("rollout.temperature=0.01", r"must be at least 0\.05, or the reports of a study are all alike"),
        ("rollout.max_staleness=1 learner.rl.correction.mode=off", "older weights need the correction"),
        ("learner.offload=true learner.zero_stage=0", "offloads what ZeRO splits"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_with_the_reason_and_the_way_out(overrides: str, words: str) -> None:
    refused(overrides, words)


@pytest.mark.parametrize("surrogate", check_rl.SURROGATES)
@pytest.mark.parametrize("advantage", check_rl.ADVANTAGES)
def test_every_other_pair_of_advantage_and_surrogate_is_an_algorithm(advantage: str, surrogate: str) -> None:
    overrides = [f"{RL}advantage={advantage}", f"{RL}surrogate={surrogate}"]
    if surrogate == "reinforce":
        overrides.append(f"{RL}minibatches=1")
    if surrogate == "gspo":
        overrides.append(f"{RL}correction.level=sequence")
        if advantage in check_rl.TOKEN_ADVANTAGES:
            return
    assert config(*overrides).learner.rl.advantage == advantage


@pytest.mark.parametrize("advantage", ["scst", "reinforce_pp", "ppo"])
def test_methods_that_do_not_compare_reports_of_a_study_do_with_one(advantage: str) -> None:
    assert config(f"{RL}advantage={advantage}", "rollout.samples_per_study=1").rollout.samples_per_study == 1


def test_the_kl_can_be_in_the_reward_adapt_and_be_off() -> None:
    reward = (f"{RL}advantage=rloo", f"{RL}kl.place=reward", f"{RL}kl.estimator=k1")
    kl = config(*reward, f"{RL}kl.target=0.1").learner.rl.kl
    assert (kl.place, kl.estimator, kl.target) == ("reward", "k1", 0.1)
    assert config(f"{RL}kl.place=off").learner.rl.kl.place == "off"


def test_asynchronous_rollouts_come_with_the_correction() -> None:
    assert config("rollout.max_staleness=2").learner.rl.correction.mode == "truncate"


@pytest.mark.parametrize("data", ["mimic", "iu"])
def test_the_setting_of_lm_rrg_is_ppo_on_radcliq_close_to_the_warm_start(data: str) -> None:
    cfg = config(f"+exp={data}_rl", "data.root=/data", "reward.weights=/weights")
    rl = cfg.learner.rl
    assert (rl.advantage, rl.surrogate, rl.kl.place) == ("ppo", "ppo_clip", "reward")
    assert rl.kl.coef > 0
    assert rl.clip_low == rl.clip_high
    assert cfg.reward.backend == "published"
    assert cfg.reward.component_weights == {}
    episodes = rl.studies_per_step * cfg.rollout.samples_per_study
    reach = (1 + 0.2 * episodes / rl.kl.horizon) ** rl.steps
    assert reach > 10  # the coefficient can find its place within the run


@pytest.mark.parametrize("data", ["mimic", "iu"])
def test_the_modern_recipe_is_grpo_with_clip_higher_and_overlap(data: str) -> None:
    cfg = config(f"+exp={data}_grpo", "data.root=/data", "reward.weights=/weights")
    rl = cfg.learner.rl
    assert (rl.advantage, rl.surrogate, rl.reduction) == ("grpo", "ppo_clip", "tokens")
    assert rl.clip_high > rl.clip_low
    assert rl.drop_flat_groups
    assert cfg.rollout.max_staleness == 1


@pytest.mark.parametrize("name", ["mimic_rl", "iu_rl", "mimic_grpo", "iu_grpo"])
def test_the_object_store_has_room_for_two_versions_of_the_experiments_weights(name: str) -> None:
    cfg = config(f"+exp={name}", "data.root=/data", "reward.weights=/weights")
    assert cfg.cluster.object_store_mib * 2**20 > 2 * 2 * 1.777e9  # configs/model/qwen2_5_1_5b.yaml


def test_every_named_algorithm_of_the_docs_is_a_config_that_can_run() -> None:
    table = (ROOT / "docs/algorithms.md").read_text().split("## Named algorithms")[1].split("##")[0]
    rows = re.findall(r"^\| (.+?) \| `(.+?)`(?: and `(.+?)`)? \|$", table, re.MULTILINE)
    assert len(rows) == 11
    for _, settings, beside in rows:
        config(*(RL + setting for setting in settings.split()), *([beside] if beside else []))


def test_the_parts_of_the_rules_are_those_of_the_objectives() -> None:
    from learner.objectives.advantages import sequence_advantages
    from learner.objectives.surrogates import SURROGATES

    assert set(check_rl.SURROGATES) == set(SURROGATES)
    for kind in check_rl.ADVANTAGES:
        if kind in check_rl.TOKEN_ADVANTAGES:
            with pytest.raises(ValueError, match="whole reports"):
                sequence_advantages(kind, [1.0, 2.0], ["a", "a"], [True, True])
        else:
            sequence_advantages(kind, [1.0, 2.0], ["a", "a"], [True, True], {"a": 0.0})
