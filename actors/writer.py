"""Reports of a saved policy for any studies: greedy decoding by the vLLM engine, in this process, no Ray.

Contract: `with ReportWriter(find_checkpoint(folder)) as writer: writer.write(study)`. A report depends on its study and
the policy alone, not on the studies beside it; it is, with its evidence, what `learner.evaluate` measures. One writer a
process, made and used in one thread (torch's and vLLM's settings belong to a thread); images are loaded ahead in
others. The process can't give its engine's settings back: it should do little else.

Beam search is not offered: vLLM has none for prompts of embeddings.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Final

from actors.checkpoint import Checkpoint
from actors.env import rollout_env
from actors.errors import PromptError
from actors.samples import Prompt, Sample, Sampling
from configs.schema import BackboneConfig, RolloutConfig
from rrg.data.dicom import IN_A_SET
from rrg.data.imagecache import batches
from rrg.data.imagefiles import FILES
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.evidence import Evidence

if TYPE_CHECKING:
    from rrg.model.backbone import ImageStore
    from rrg.model.features import ImageBatch
    from rrg.model.policy import ReportPolicy

BATCH: Final = 64
"""Studies whose reports are written together, and whose images may wait in memory."""

DEVICES: Final = ("cpu", "cuda")


@dataclass(frozen=True)
class Written:
    """The report of one study and what was seen in all its regions; a failed one has the reason and neither.

    `cut` says that the report was still going on at the longest length that the policy's run allowed.
    """

    study: Study
    report: str = field(default="", repr=False)
    evidence: Evidence = field(default=(), repr=False)
    cut: bool = False
    failed: str | None = None


class ReportWriter:
    """A policy with its engine. `seconds` are those spent so far on waiting for images, on prompts (the extractor, and
    a backbone that was trained) and in the engine."""

    def __init__(self, checkpoint: Checkpoint, device: str | None = None) -> None:
        """Loads the policy and builds the engine (12 s on a CPU). `device`: "cpu" or "cuda", by default the one that
        the installed vLLM is for.

        Raises UserError for a device that is not there, a folder that holds no policy or one of another format, and a
        bare policy whose frozen backbone is not the default one.
        """
        self.checkpoint = checkpoint
        self.seconds = {"images": 0.0, "prompts": 0.0, "engine": 0.0}
        os.environ |= rollout_env(checkpoint.rollout)  # torch and vLLM read it when they are imported
        import torch

        from actors.weights import keep_embeddings_alone
        from rrg.model.build import load_policy
        from rrg.model.lora import merged_state_dict

        rollout = _rollout_for(checkpoint.rollout, device)
        os.environ |= rollout_env(rollout)
        self.device = _device(device)
        torch.set_num_threads(rollout.threads)
        self._policy = load_policy(checkpoint.policy)  # on the CPU: the device is to hold the LLM once, in the engine
        self._store = image_store(checkpoint, self._policy)
        from actors.engine import RolloutEngine

        self._engine = RolloutEngine(checkpoint.policy / "llm", rollout, _name(self._policy.llm.dtype))
        self._engine.load_weights(merged_state_dict(self._policy.llm), version=0)
        keep_embeddings_alone(self._policy)
        self._policy.to(self.device)
        self._sampling = Sampling(rollout.max_new_tokens, self._policy.eos_token_id, greedy=True)

    def write(self, study: Study) -> Written:
        """The report of one study. Raises UserError where it can't be written: an image that can't be read, say."""
        (written,) = self.write_all([study])
        if written.failed is not None:
            raise UserError(written.failed)
        return written

    def write_all(self, studies: Iterable[Study]) -> Iterator[Written]:
        """The reports of all studies, in their order, `BATCH` at a time; one that can't be written does not end it."""
        for batch in batches(self._loaded(studies), BATCH):
            yield from self._write(batch)

    def close(self) -> None:
        """Gives the engine's memory back."""
        self._engine.close()

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _loaded(self, studies: Iterable[Study]) -> Iterator[tuple[Study, ImageBatch | str]]:
        """Every study with its images, or the reason why there are none, loaded up to `BATCH` ahead."""
        import torch

        waiting: deque[tuple[Study, Future[ImageBatch | str]]] = deque()
        threads = max(1, len(os.sched_getaffinity(0)))
        pool = ThreadPoolExecutor(threads, "images", torch.set_num_threads, (1,))
        try:
            for study in studies:
                waiting.append((study, pool.submit(self._load, study)))
                if len(waiting) > BATCH:
                    yield self._awaited(*waiting.popleft())
            while waiting:
                yield self._awaited(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, study: Study) -> ImageBatch | str:
        try:
            check_views(study, self.checkpoint)
            return self._store.load_batch([study])
        except (UserError, OSError) as error:
            return own_words(study, error)

    def _awaited(self, study: Study, images: Future[ImageBatch | str]) -> tuple[Study, ImageBatch | str]:
        begun = time.monotonic()
        loaded = images.result()
        self.seconds["images"] += time.monotonic() - begun
        return study, loaded

    def _write(self, loaded: Sequence[tuple[Study, ImageBatch | str]]) -> list[Written]:
        from actors.evidence import Draft, draft_evidence, write_sentences

        begun = time.monotonic()
        answers = [Written(study, failed=images if isinstance(images, str) else None) for study, images in loaded]
        prompts: list[Prompt] = []
        drafts: list[Draft] = []
        places: list[int] = []
        for place, (study, images) in enumerate(loaded):
            if isinstance(images, str):
                continue
            # One by one, as the rollout actors do: a report does not depend on its batch.
            embeds, seen = self._policy.prompt_of(study, images)
            try:
                self._engine.check_prompt(embeds, self._sampling.max_new_tokens)
            except PromptError as error:
                answers[place] = replace(answers[place], failed=f"study {study.id}: {error}")
                continue
            places.append(place)
            prompts.append(Prompt(embeds, seed=None))
            drafts.append(draft_evidence(self._policy, study, seen))
        prompted = time.monotonic()
        samples = {sample.index: sample for sample in self._engine.generate(prompts, self._sampling)} if prompts else {}
        evidence = write_sentences(self._policy, self._engine, drafts)
        for index, place in enumerate(places):
            answers[place] = self._answer(answers[place].study, samples[index], evidence[index])
        self.seconds["prompts"] += prompted - begun
        self.seconds["engine"] += time.monotonic() - prompted
        return answers

    def _answer(self, study: Study, sample: Sample, evidence: Evidence) -> Written:
        if sample.failed is not None:
            return Written(study, failed=f"study {study.id}: {sample.failed}")
        report = self._policy.decode(sample.token_ids.tolist())
        return Written(study, report, evidence, cut=sample.finish_reason == "length")


def check_views(study: Study, checkpoint: Checkpoint) -> None:
    """Raises UserError for an image of a view that the policy was not trained on."""
    strange = next((image for image in study.images if image.view not in checkpoint.views), None)
    if strange is None:
        return
    path, known = strange.path, ", ".join(sorted(checkpoint.views))
    what = f"a {strange.view} view"
    if strange.guessed:
        named = f"{path.stem}_frontal{path.suffix}"
        what = f"taken for {what} (it is not the first image, and its name tells no view; {named} would)"
    raise UserError(f"{path}: {what}: this policy was trained on {known} views alone; leave the image out")


def own_words(study: Study, error: Exception) -> str:
    """What is wrong with the study's images; of a person's own files without the advice for data sets."""
    return str(error).removesuffix(IN_A_SET) if study.source == FILES else str(error)


def _rollout_for(cfg: RolloutConfig, device: str | None) -> RolloutConfig:
    """The run's settings of the engine, on this machine. Raises UserError where it has no GPU and one is wanted."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu, or see make setup DEVICE=gpu")
    if device == "cpu" or not torch.cuda.is_available():
        return replace(cfg, gpus_per_actor=0.0, tensor_parallel=1)
    over = cfg.tensor_parallel if cfg.tensor_parallel <= torch.cuda.device_count() else 1
    return replace(cfg, gpus_per_actor=float(over), tensor_parallel=over)


def _device(wanted: str | None) -> str:
    """The one that vLLM runs on. Raises UserError where another is wanted."""
    from vllm.platforms import current_platform

    device = "cpu" if current_platform.is_cpu() else "cuda"
    if wanted not in (None, device):
        raise UserError(f"--device {wanted}: the installed vLLM runs on {device}; leave it out, or install the other")
    return device


def image_store(checkpoint: Checkpoint, policy: ReportPolicy) -> ImageStore:
    """What gives images to the policy: pixels where it has a backbone of its own, else the features of the frozen one.

    Raises UserError where those are not what the policy was trained on.
    """
    from rrg.model.backbone import FeatureStore, PixelStore
    from rrg.model.efficientnet import NAME

    if policy.backbone is not None:
        path = NAME if policy.backbone.spec.model is None else str(checkpoint.policy / "backbone")
        data = replace(checkpoint.data, image_size=policy.backbone.image_size)
        return PixelStore(data, replace(checkpoint.model, backbone=BackboneConfig(path, "full")))
    store = FeatureStore(checkpoint.data, checkpoint.model)
    shape = policy.extractor.shape
    if (store.grid, store.channels) != (shape.grid, shape.patch_channels):
        raise UserError(
            f"{checkpoint.policy} was trained on features of {shape.grid} x {shape.grid} patches with "
            f"{shape.patch_channels} channels, and {checkpoint.model.backbone.path} gives others: name the run "
            "directory, whose config tells the backbone and the image size"
        )
    return store


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
