"""A real vLLM engine on a tiny random Llama, shared by the tests of this folder; transformers has the same model."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as PILImage

from actors.engine import RolloutEngine
from actors.env import rollout_env
from actors.rollout import RolloutWorker
from actors.scoring import Answers
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import Config, DataConfig, LLMConfig, ModelConfig, RewardConfig, RolloutConfig
from reward_server.errors import PairError, RewardError
from rrg.data import StudySet, load_studies
from rrg.model.backbone import make_store
from rrg.model.build import build_policy, save_policy
from rrg.model.policy import ReportPolicy
from tests.data.test_dicom import write

HIDDEN, VOCAB, EOS = 64, 120, 2


def random_llama(seed: int) -> Any:
    """A random Llama whose next-token distribution is far from flat and depends on the whole prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def named_tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def rollout_config() -> RolloutConfig:
    return RolloutConfig(max_num_seqs=64, kv_cache_mib=64, max_model_len=128, timeout_s=60.0)


@pytest.fixture(scope="session")
def llama() -> Any:
    return random_llama(0)


@pytest.fixture(scope="session")
def other_llama() -> Any:
    return random_llama(1)


@pytest.fixture(scope="session")
def build_engine(rollout_config: RolloutConfig) -> Iterator[Callable[..., RolloutEngine]]:
    """`RolloutEngine`, for any number of them. All are closed at the end: vLLM's process groups belong to the process,
    and the first engine that is closed takes them from the others."""
    os.environ.update(rollout_env(rollout_config))
    built: list[RolloutEngine] = []

    def build(folder: Path, cfg: RolloutConfig = rollout_config, dtype: str = "float32") -> RolloutEngine:
        built.append(RolloutEngine(folder, cfg, dtype))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


@pytest.fixture(scope="session")
def _engine(
    build_engine: Callable[..., RolloutEngine], llama: Any, tmp_path_factory: pytest.TempPathFactory
) -> RolloutEngine:
    folder: Path = tmp_path_factory.mktemp("llm")
    llama.config.save_pretrained(folder)
    return build_engine(folder)


@pytest.fixture
def engine(_engine: RolloutEngine, llama: Any) -> RolloutEngine:
    """The engine with the weights of `llama`, version 0."""
    _engine.load_weights(named_tensors(llama), version=0)
    return _engine


@pytest.fixture(scope="session")
def run_config(rollout_config: RolloutConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three studies with rendered X-rays and a tiny model."""
    cache = tmp_path_factory.mktemp("cache")
    llm = LLMConfig(hidden_size=HIDDEN, num_layers=2, num_heads=2, intermediate_size=128, vocab_size=400)
    return Config(
        data=DataConfig("rendered_openi", cache_dir=str(cache), limit_train=3, limit_val=0, limit_test=0, workers=1),
        model=ModelConfig(llm=llm, extractor_size=64),
        rollout=dataclasses.replace(rollout_config, samples_per_study=4, max_new_tokens=20),
        reward=RewardConfig(timeout_s=5.0),
    )


@pytest.fixture(scope="session")
def studies(run_config: Config) -> StudySet:
    studies = load_studies(run_config.data)
    make_store(run_config.data, run_config.model).prepare(list(studies))
    return studies


def make_policy(run_config: Config, studies: StudySet, seed: int) -> ReportPolicy:
    """A random policy whose next-token distribution is far from flat."""
    store = make_store(run_config.data, run_config.model)
    policy = build_policy(
        run_config.model,
        [study.target for study in studies] * 20,
        seed,
        grid=store.grid,
        channels=store.channels,
        cache_dir=run_config.data.cache_dir,
        target=run_config.data.target,
        image_size=run_config.data.image_size,
    )
    with torch.no_grad():
        for parameter in policy.llm.parameters():
            parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
    return policy


@pytest.fixture(scope="session")
def policy(run_config: Config, studies: StudySet) -> ReportPolicy:
    return make_policy(run_config, studies, seed=0)


@pytest.fixture(scope="session")
def other_policy(run_config: Config, studies: StudySet) -> ReportPolicy:
    return make_policy(run_config, studies, seed=1)


@pytest.fixture(scope="session")
def policy_dir(policy: ReportPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_policy(policy, folder)
    return folder


def published(policy: ReportPolicy, version: int) -> WeightsRef:
    arrays = {name: value.detach().numpy().copy() for name, value in policy.export_tensors().items()}
    return WeightsRef(version, arrays, policy.canary())


@pytest.fixture(scope="session")
def _worker(run_config: Config, policy_dir: Path, studies: StudySet) -> Iterator[RolloutWorker]:
    os.environ.update(rollout_env(run_config.rollout))
    worker = RolloutWorker(run_config, policy_dir, studies, rewards=None)
    yield worker
    worker.engine.close()


@pytest.fixture
def worker(_worker: RolloutWorker, policy: ReportPolicy) -> RolloutWorker:
    """A worker that serves version 0, the weights of `policy`, and asks nobody for rewards."""
    _worker.rewards = None
    _worker.offer(published(policy, 0))
    _worker.update(published(policy, 0))
    return _worker


@pytest.fixture(scope="session")
def weights(policy: ReportPolicy) -> WeightsRef:
    return published(policy, 0)


class WordScorer:
    """Scores by counting words, in a thread of its own like the reward client; can be told to fail or to wait."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.asked: list[list[tuple[str, str]]] = []
        self.error: RewardError | None = None
        self.value = 1.0
        self.refused: str | None = None
        self.go = threading.Event()
        self.go.set()

    def submit_each(self, pairs: list[tuple[str, str]]) -> Future[Answers]:
        self.asked.append(pairs)
        return self.pool.submit(self._score, pairs)

    def _score(self, pairs: list[tuple[str, str]]) -> Answers:
        self.go.wait(30)
        if self.error is not None:
            raise self.error
        return [
            PairError("hypothesis: too long")
            if text == self.refused
            else {"embedded": self.value, "repetition": 0.0, "length": 0.0, "positive_f1": float(len(text.split()))}
            for _, text in pairs
        ]


@pytest.fixture
def scorer() -> Iterator[WordScorer]:
    scorer = WordScorer()
    yield scorer
    scorer.go.set()
    scorer.pool.shutdown()


def make_request(studies: StudySet, weights: WeightsRef, score: bool = True, samples: int = 4) -> SampleRequest:
    return SampleRequest(3, 5, tuple(studies.studies), samples, weights, score=score)


def same(a: Trajectory, b: Trajectory) -> bool:
    return (a.token_ids.tobytes(), a.logprobs.tobytes()) == (b.token_ids.tobytes(), b.logprobs.tobytes())


def make_run(folder: Path, run_config: Config, studies: StudySet) -> Path:
    """A run directory with a warm start: a random policy that finds some regions significant."""
    policy = make_policy(run_config, studies, seed=0)
    with torch.no_grad():
        policy.extractor.significance.bias.zero_()
    save_policy(policy, folder / "warm_start")
    OmegaConf.save(OmegaConf.structured(run_config), folder / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same picture as PNG, JPEG and DICOM, and another one."""
    folder = tmp_path_factory.mktemp("xrays")
    across, down = np.meshgrid(np.arange(240), np.arange(200))
    grey = (across + down).clip(0, 255).astype(np.uint8)
    PILImage.fromarray(grey).save(folder / "a.png")
    PILImage.fromarray(grey).save(folder / "b.jpg", quality=95)
    write(folder / "c.dcm", grey, bits=8)
    PILImage.fromarray(grey[::-1].copy()).save(folder / "d.png")
    return folder
