"""A published version is served exactly, or refused with the reason while the old one stays in force."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine import Prompt, RolloutEngine, Sampling
from actors.errors import EngineError, WeightsError
from actors.rollout import RolloutWorker
from actors.trajectory import SampleRequest, WeightsRef
from actors.weights import WeightsReceiver
from configs.schema import BackboneConfig, LLMConfig, LoRAConfig, ModelConfig
from rrg.data import StudySet
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.lora import adapter_state_dict
from rrg.model.policy import ReportPolicy
from rrg.model.tokenizer import train_tokenizer
from rrg.model.vision import BackboneSpec
from tests.actors.conftest import EOS, HIDDEN, published


def reports(worker: RolloutWorker, studies: StudySet, weights: WeightsRef) -> list[tuple[bytes, bytes]]:
    request = SampleRequest(0, 0, tuple(studies.studies), 2, weights, score=False)
    return [(t.token_ids.tobytes(), t.logprobs.tobytes()) for t in worker.collect(request)[0]]


def test_a_new_version_changes_the_reports_and_going_back_restores_them(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    first = reports(worker, studies, published(policy, 0))
    second = reports(worker, studies, published(other_policy, 1))
    assert worker.version == 1
    assert not set(first) & set(second)
    assert reports(worker, studies, published(policy, 2)) == first


def test_the_same_number_with_other_weights_is_loaded(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    first = reports(worker, studies, published(policy, 0))
    assert reports(worker, studies, published(other_policy, 0)) != first


def faulty(ref: WeightsRef, good: WeightsRef, fault: str) -> WeightsRef:
    tensors = dict(ref.tensors)
    if fault == "LLM of another version":
        tensors |= {name: value for name, value in good.tensors.items() if name.startswith("llm.")}
    elif fault == "extractor of another version":
        tensors |= {name: value for name, value in good.tensors.items() if name.startswith("extractor.")}
    elif fault == "one layer of another version":
        name = "llm.model.layers.0.mlp.down_proj.weight"
        tensors[name] = good.tensors[name]
    elif fault == "NaN in the extractor":
        tensors["extractor.region_queries"] = np.full_like(tensors["extractor.region_queries"], np.nan)
    elif fault == "lacking extractor tensor":
        del tensors["extractor.region_queries"]
    return dataclasses.replace(ref, tensors=tensors)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("LLM of another version", "version 7 failed its canary: the log-probabilities.*version 0 stays"),
        ("extractor of another version", "version 7 failed its canary: the visual tokens.*version 0 stays"),
        ("one layer of another version", "version 7 failed its canary"),
        ("NaN in the extractor", "version 7: extractor.region_queries holds NaN"),
        ("lacking extractor tensor", "version 7 lacks 1 tensors"),
    ],
)
def test_faulty_weights_are_refused_and_the_old_version_serves_on(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy, fault: str, reason: str
) -> None:
    good = published(policy, 0)
    before = reports(worker, studies, good)
    with pytest.raises(WeightsError, match=reason):
        worker.update(faulty(published(other_policy, 7), good, fault))
    assert worker.version == 0
    assert reports(worker, studies, good) == before


def test_without_weights_nothing_is_served(worker: RolloutWorker) -> None:
    worker.engine.version = None
    with pytest.raises(EngineError, match="no weights yet"):
        worker.engine.generate([], None)  # type: ignore[arg-type]


# LoRA and trained backbones


@pytest.fixture(scope="module")
def lora_dir(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LoRA policy on the base that the shared engine serves, with a backbone that has adapters too."""
    hub, folder = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("lora")
    llama.save_pretrained(hub)
    train_tokenizer(["the heart is normal ."] * 40, 300).save_pretrained(hub)
    cfg = ModelConfig(
        llm=LLMConfig(path=str(hub), train="lora", lora=LoRAConfig(rank=4)),
        backbone=BackboneConfig(train="full"),
        regions=False,
        extractor_size=64,
    )
    levels = BackboneSpec.of(cfg.backbone.path, 64).levels
    policy = build_policy(
        cfg, [], 0, grid=levels.grid, channels=levels.channels, cache_dir="unused", target="findings", image_size=64
    )
    save_policy(policy, folder)
    return folder


def trained(lora_dir: Path, seed: int) -> ReportPolicy:
    """The policy with adapters, backbone and extractor as training might have left them."""
    policy = load_policy(lora_dir)
    assert policy.backbone is not None
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in [*adapter_state_dict(policy.llm).values(), *policy.extractor.parameters()]:
            value.add_(torch.randn_like(value) * 0.1)
        for value in policy.backbone.parameters():
            value.add_(value * torch.randn_like(value) * 0.1)
    return policy


def sent(policy: ReportPolicy, version: int, broadcast: str) -> WeightsRef:
    arrays = {name: value.detach().numpy().copy() for name, value in policy.export_tensors(broadcast).items()}
    return WeightsRef(version, arrays, policy.canary())


def greedy(engine: RolloutEngine) -> list[int]:
    embeds = np.random.default_rng(0).normal(size=(20, HIDDEN)).astype(np.float32)
    (sample,) = engine.generate([Prompt(embeds, seed=0)], Sampling(24, EOS, greedy=True))
    return [int(token) for token in sample.token_ids]


@pytest.mark.parametrize("broadcast", ["merged", "adapter"])
def test_lora_and_a_trained_backbone_arrive_whole_or_not_at_all(
    engine: RolloutEngine, lora_dir: Path, broadcast: str
) -> None:
    receiver = WeightsReceiver(engine, load_policy(lora_dir), "float32", 60.0, broadcast)
    first, second = (sent(trained(lora_dir, seed), seed, broadcast) for seed in (0, 1))
    reports = []
    for ref in (first, second):
        assert receiver.update(ref)
        assert not receiver.update(ref)
        reports.append(greedy(engine))
    assert reports[0] != reports[1]
    part = "adapter." if broadcast == "adapter" else "llm."
    assert all(name.startswith((part, "extractor.", "backbone.")) for name in first.tensors)
    for prefix, reason in ((part, "the log-probabilities of the LLM"), ("backbone.", "the visual tokens")):
        mixed = dict(first.tensors) | {name: v for name, v in second.tensors.items() if name.startswith(prefix)}
        with pytest.raises(WeightsError, match=f"version 7 failed its canary: {reason}.*version 1 stays"):
            receiver.update(dataclasses.replace(first, version=7, tensors=mixed))
        assert receiver.version == 1
        assert greedy(engine) == reports[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"adapter.model.layers.1.mlp.up_proj.lora_A.weight": None}, "version 7 lacks 1 tensors"),
        ({"adapter.model.layers.1.mlp.up_proj.lora_A.weight": np.full((4, HIDDEN), np.nan)}, "holds NaN"),
        ({"adapter.model.layers.1.mlp.up_proj.lora_A.weight": np.zeros((5, HIDDEN))}, r"is \(5, 64\), not \(4, 64\)"),
        ({"adapter.lm_head.lora_A.weight": np.zeros((4, HIDDEN))}, "1 unknown tensors"),
        ({"llm.lm_head.weight": np.zeros((4, HIDDEN))}, "1 unknown tensors"),
    ],
)
def test_faulty_adapters_are_refused(
    engine: RolloutEngine, lora_dir: Path, change: dict[str, Any], reason: str
) -> None:
    receiver = WeightsReceiver(engine, load_policy(lora_dir), "float32", 60.0, "adapter")
    ref = sent(trained(lora_dir, 0), 7, "adapter")
    tensors = {name: value for name, value in (dict(ref.tensors) | change).items() if value is not None}
    before = greedy(engine)
    with pytest.raises(WeightsError, match=reason):
        receiver.update(dataclasses.replace(ref, tensors=tensors))
    assert receiver.version is None
    assert greedy(engine) == before
