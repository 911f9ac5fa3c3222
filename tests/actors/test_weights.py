"""A published version is served exactly, or refused with the reason while the old one stays in force."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from actors.engine import RolloutEngine
from actors.errors import EngineError, WeightsError
from actors.rollout import RolloutWorker
from actors.samples import Prompt, Sampling
from actors.trajectory import SampleRequest, WeightsRef
from actors.weights import WeightsReceiver, as_array, as_tensors, weights_digest
from configs.schema import BackboneConfig, DataConfig, LLMConfig, LoRAConfig, ModelConfig
from rrg.data import StudySet
from rrg.model.backbone import PixelStore
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.lora import adapter_state_dict, is_lora
from rrg.model.policy import ReportPolicy
from rrg.model.vision import BackboneSpec
from tests.actors.conftest import EOS, HIDDEN, VOCAB, published
from tests.model.test_features import make_study
from tests.model.test_vision import MODELS, save_model

IMAGE_SIZE = 64


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
def hub(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model that the shared engine serves, and a vision transformer, as users have theirs."""
    folder = tmp_path_factory.mktemp("hub")
    llama.save_pretrained(folder / "llm")
    words = ["<pad>", "<s>", "</s>", "<unknown>", *(f"word{i}" for i in range(VOCAB - 4))]
    known = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(known), pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unknown>"
    )
    tokenizer.save_pretrained(folder / "llm")
    torch.manual_seed(0)
    save_model(folder / "vit", MODELS["vit"][0]())
    return folder


def model_config(hub: Path, backbone: str, **settings: Any) -> ModelConfig:
    path = str(hub / "vit") if backbone == "lora" else "efficientnet_lite0"
    return ModelConfig(
        backbone=BackboneConfig(path=path, train=backbone, lora=LoRAConfig(rank=2)),
        regions=False,
        extractor_size=64,
        **settings,
    )


def make(cfg: ModelConfig, folder: Path) -> Path:
    """A new policy of `cfg`, saved."""
    levels = BackboneSpec.of(cfg.backbone.path, IMAGE_SIZE).levels
    policy = build_policy(
        cfg,
        [],
        0,
        grid=levels.grid,
        channels=levels.channels,
        cache_dir="unused",
        target="findings",
        image_size=IMAGE_SIZE,
    )
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="module")
def lora_dirs(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved LoRA policies on the base that the shared engine serves, by what is trained of their backbones."""
    llm = LLMConfig(path=str(hub / "llm"), train="lora", lora=LoRAConfig(rank=4))
    kinds = ("full", "lora")
    return {kind: make(model_config(hub, kind, llm=llm), tmp_path_factory.mktemp(kind)) for kind in kinds}


def trained(folder: Path, seed: int) -> ReportPolicy:
    """The policy with all that is trained of it as training might have left it."""
    policy = load_policy(folder)
    assert policy.backbone is not None
    torch.manual_seed(seed)
    with torch.no_grad():
        adapters = [adapter_state_dict(part) for part in (policy.llm, policy.backbone)]
        for value in [*(value for part in adapters for value in part.values()), *policy.extractor.parameters()]:
            value.add_(torch.randn_like(value) * 0.1)
        for value in [] if is_lora(policy.backbone) else policy.backbone.parameters():
            value.add_(value * torch.randn_like(value) * 0.1)
    return policy


def sent(policy: ReportPolicy, version: int, broadcast: str) -> WeightsRef:
    tensors = policy.export_tensors(broadcast)
    arrays = {name: as_array(value) for name, value in tensors.items()}
    return WeightsRef(version, arrays, policy.canary(), weights_digest(arrays))


def changed(ref: WeightsRef, tensors: dict[str, Any], *, version: int = 7, published: bool = True) -> WeightsRef:
    """`ref` with other tensors; as if they were the published ones, or as if they had been mistaken for those."""
    digest = weights_digest(tensors) if published else ref.digest
    return dataclasses.replace(ref, version=version, tensors=tensors, digest=digest)


def greedy(engine: RolloutEngine) -> list[int]:
    embeds = np.random.default_rng(0).normal(size=(20, HIDDEN)).astype(np.float32)
    (sample,) = engine.generate([Prompt(embeds, seed=0)], Sampling(24, EOS, greedy=True))
    return [int(token) for token in sample.token_ids]


@pytest.mark.parametrize(("broadcast", "backbone"), [("merged", "lora"), ("adapter", "lora"), ("adapter", "full")])
def test_lora_and_a_trained_backbone_arrive_whole_or_not_at_all(
    engine: RolloutEngine, lora_dirs: dict[str, Path], broadcast: str, backbone: str
) -> None:
    folder = lora_dirs[backbone]
    receiver = WeightsReceiver(engine, load_policy(folder), "float32", 60.0, broadcast)
    first, second = (sent(trained(folder, seed), seed, broadcast) for seed in (0, 1))
    reports = []
    for ref in (first, second):
        assert receiver.update(ref)
        assert not receiver.update(ref)
        reports.append(greedy(engine))
    assert reports[0] != reports[1]
    part = "adapter." if broadcast == "adapter" else "llm."
    assert all(name.startswith((part, "extractor.", "backbone.")) for name in first.tensors)
    assert not any("lora" in name for name in first.tensors if name.startswith("backbone."))
    for prefix, reason in ((part, "the log-probabilities of the LLM"), ("backbone.", "the visual tokens")):
        mixed = dict(first.tensors) | {name: v for name, v in second.tensors.items() if name.startswith(prefix)}
        with pytest.raises(WeightsError, match=f"version 7 failed its canary: {reason}.*version 1 stays"):
            receiver.update(changed(first, mixed))
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
    engine: RolloutEngine, lora_dirs: dict[str, Path], change: dict[str, Any], reason: str
) -> None:
    receiver = WeightsReceiver(engine, load_policy(lora_dirs["full"]), "float32", 60.0, "adapter")
    ref = sent(trained(lora_dirs["full"], 0), 7, "adapter")
    tensors = {name: value for name, value in (dict(ref.tensors) | change).items() if value is not None}
    before = greedy(engine)
    with pytest.raises(WeightsError, match=reason):
        receiver.update(changed(ref, tensors))
    assert receiver.version is None
    assert greedy(engine) == before


@pytest.mark.parametrize("backbone", ["full", "lora"])
def test_prompts_of_a_trained_backbone_are_those_of_the_learner(
    engine: RolloutEngine, hub: Path, lora_dirs: dict[str, Path], backbone: str, tmp_path: Path
) -> None:
    store = PixelStore(DataConfig("r2gen", cache_dir=str(tmp_path), image_size=IMAGE_SIZE), model_config(hub, backbone))
    studies = [make_study(tmp_path, "a"), make_study(tmp_path, "bc", views=2)]
    store.prepare(studies)
    learner, here = trained(lora_dirs[backbone], 0), load_policy(lora_dirs[backbone])
    WeightsReceiver(engine, here, "float32", 60.0, "merged").update(sent(learner, 1, "merged"))
    for study in studies:
        prompts = [policy.study_prompt(study, store)[0] for policy in (learner, here, trained(lora_dirs[backbone], 1))]
        np.testing.assert_allclose(prompts[1], prompts[0], atol=1e-5)
        assert np.abs(prompts[2] - prompts[0]).max() > 1e-2


# bfloat16


@pytest.fixture(scope="module")
def rounded_dir(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = LLMConfig(path=str(hub / "llm"), train="lora", lora=LoRAConfig(rank=4))
    return make(model_config(hub, "lora", llm=llm, dtype="bfloat16"), tmp_path_factory.mktemp("rounded"))


@pytest.fixture(scope="module")
def receiver(build_engine: Callable[..., RolloutEngine], rounded_dir: Path) -> WeightsReceiver:
    """Of an engine in bfloat16."""
    engine = build_engine(rounded_dir / "llm", dtype="bfloat16")
    return WeightsReceiver(engine, load_policy(rounded_dir), "bfloat16", 60.0, "merged")


def test_in_bfloat16_right_weights_are_accepted_and_others_refused(
    receiver: WeightsReceiver, rounded_dir: Path
) -> None:
    right, other = (sent(trained(rounded_dir, seed), seed, "merged") for seed in (0, 1))
    for ref in (right, other, right):
        assert receiver.update(ref)
    barely = {name: value.copy() for name, value in other.tensors.items()}
    value = barely["llm.model.layers.0.mlp.down_proj.weight"]
    assert value.dtype == np.uint16  # half the bytes of float32
    value[3, 5] ^= 1  # by the smallest step of bfloat16
    for tensors in (dict(right.tensors), barely):
        with pytest.raises(WeightsError, match=r"version 7 came as other arrays than were published.*version 0 stays"):
            receiver.update(changed(other, tensors, published=False))
    for prefix, reason in (("llm.", "the log-probabilities"), ("extractor.", "the visual tokens")):
        mixed = dict(right.tensors) | {name: v for name, v in other.tensors.items() if name.startswith(prefix)}
        with pytest.raises(WeightsError, match=f"version 7 failed its canary: {reason}.*version 0 stays"):
            receiver.update(changed(right, mixed))
    assert receiver.version == 0


def test_arrays_hold_every_bit_of_their_tensors() -> None:
    values = torch.tensor([1.0, -0.0, 3.14159, 1e-40, float("inf")])
    for tensor in (values, values.bfloat16(), values.bfloat16().reshape(5, 1).T, torch.arange(3)):
        (back,) = as_tensors({"a": as_array(tensor)}).values()
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor)


def test_the_digest_tells_every_bit_name_and_shape() -> None:
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(40_000, dtype=np.float32),
        "b": np.ones(()),
        "c": np.zeros((0, 3)),
    }
    digest = weights_digest(arrays)
    assert weights_digest(dict(reversed(list(arrays.items())))) == digest
    for place in (0, 16_383, 16_384, 39_999):
        other = arrays["a"].copy()
        other.view(np.uint32)[place] ^= 1
        assert weights_digest(arrays | {"a": other}) != digest
    square = arrays["a"].reshape(200, 200)
    assert weights_digest(arrays | {"a": square}) != digest
    assert weights_digest({"a": np.asfortranarray(square)}) == weights_digest({"a": square})
    assert weights_digest(arrays | {"c": np.zeros((0, 4))}) != digest
    assert weights_digest({"a": arrays["b"], "b": arrays["a"], "c": arrays["c"]}) != digest
