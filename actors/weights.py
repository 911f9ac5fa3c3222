"""Taking over a published version of the weights: fetch, check, load, compare with what the publisher computed.

Contract: after `WeightsReceiver.update(ref)` the engine and the policy serve exactly `ref`, or the call raised
`WeightsError` and both serve what they served before (nothing, if there was nothing before). How the language model
comes into the engine is an `LLMLoader`'s affair: in Ray's object store here, through NCCL in `actors.nccl`. Where that
keeps no old weights to go back to, a canary that fails leaves an actor that serves nothing.

Two checks. The digest tells whether the arrays are the published ones, at any dtype and down to the last bit. The
canary tells whether they were loaded so that they do what they do at the publisher: sharply in float32, coarsely in
bfloat16, where two correct implementations round differently.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from actors.engine import RolloutEngine
from actors.errors import WeightsError
from actors.shapes import check_weights
from actors.trajectory import WeightsRef
from rrg.canary import Canary
from rrg.model.lora import adapted_layers, adapter_state_dict, base_state_dict, merge, remove_lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rrg.model.policy import ReportPolicy

# `weights_digest` adds up rows of so many bytes before it hashes.
ROW: Final = 1 << 16


@dataclass(frozen=True)
class Bound:
    """How far a receiver's canary may lie from the publisher's: `absolute`, and `relative` to the largest value."""

    absolute: float
    relative: float = 0.0

    def of(self, values: npt.NDArray[np.float32]) -> float:
        return self.absolute + self.relative * float(np.abs(values).max(initial=0.0))


@dataclass(frozen=True)
class CanaryBounds:
    logprobs: Bound
    embeds: Bound


# By the engine's dtype. float32: measured below 1e-5; weights of a neighbouring RL step differ by more than 1e-3.
# bfloat16: log-probabilities of -11 to -20 were measured to differ by up to 0.29 for the same weights (vLLM and
# transformers fuse, and so round, in other places); embeds are computed by the same code, and differ by roundings.
CANARY_BOUNDS: Mapping[str, CanaryBounds] = {
    "float32": CanaryBounds(logprobs=Bound(1e-4), embeds=Bound(1e-4)),
    "bfloat16": CanaryBounds(logprobs=Bound(1.0), embeds=Bound(0.0, relative=5e-2)),
}


class LLMLoader(Protocol):
    """How the language model of a version comes into the engine."""

    # Names and shapes of what `WeightsRef.tensors` has of it.
    shapes: Mapping[str, tuple[int, ...]]
    # Whether `load` can bring back a version that was in force before.
    restores: bool

    def load(self, ref: WeightsRef, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Puts the weights into the engine; returns the token embeddings. `tensors` are those of `ref`, checked.

        Raises WeightsError, the engine untouched, where they cannot be had.
        """


class WeightsReceiver:
    """Keeps an engine (the LLM) and a policy (extractor, trained backbone, token embeddings) on the published weights.

    The policy's own LLM layers are dropped: the engine has them. With `broadcast` "adapter" (`model.llm.broadcast`), a
    version brings the LLM's adapter only: the base is kept in host memory, and merged with each. A reference to the
    arrays of the version in force is kept, to go back to if the next one fails its canary. `loader` brings the LLM
    another way than those arrays.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        policy: ReportPolicy,
        dtype: str,
        timeout_s: float,
        broadcast: str = "merged",
        loader: LLMLoader | None = None,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._bounds = CANARY_BOUNDS[dtype]
        self._timeout_s = timeout_s
        own = _Adapter if broadcast == "adapter" else _Merged
        self._llm: LLMLoader = loader or own(engine, policy.llm)
        self._expected = dict(self._llm.shapes)
        self._expected |= {f"extractor.{name}": tuple(t.shape) for name, t in policy.extractor.state_dict().items()}
        if policy.backbone is not None:
            remove_lora(policy.backbone)  # it comes merged
            self._expected |= {f"backbone.{name}": tuple(t.shape) for name, t in policy.backbone.state_dict().items()}
        self._embeddings = keep_embeddings_alone(policy)
        self._serving: tuple[WeightsRef, dict[str, torch.Tensor]] | None = None

    @property
    def version(self) -> int | None:
        """The version in force; None before the first."""
        return None if self._serving is None or self._engine.version is None else self._serving[0].version

    def update(self, ref: WeightsRef) -> bool:
        """Serve `ref`; False if it is served already.

        Raises WeightsError where the weights do not arrive in time, are incomplete, not finite, not those that were
        published, or give other values than the canary's; the message has the versions and the gap.
        """
        if self.version is not None and self._serving is not None and _same(ref, self._serving[0]):
            return False
        arrays = fetch(ref, self._timeout_s)
        tensors = as_tensors(arrays)
        check_weights(tensors, self._expected, ref.version)
        self._compare_digest(ref, arrays)
        self._load(ref, tensors)
        try:
            self._compare(ref)
        except WeightsError:
            self._go_back()
            raise
        self._serving = (ref, tensors)
        return True

    def _load(self, ref: WeightsRef, tensors: Mapping[str, torch.Tensor]) -> None:
        embeddings = self._llm.load(ref, tensors)
        self._policy.extractor.load_state_dict(_under("extractor.", tensors))
        if self._policy.backbone is not None:
            self._policy.backbone.load_state_dict(_under("backbone.", tensors))
        with torch.no_grad():
            self._embeddings.copy_(embeddings)

    def _go_back(self) -> None:
        if self._serving is None or not self._llm.restores:
            self._engine.version = None
        else:
            self._load(*self._serving)

    def _compare_digest(self, ref: WeightsRef, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if ref.digest is None and isinstance(ref.tensors, Mapping):
            return
        if weights_digest(arrays) != ref.digest:
            raise WeightsError(
                f"weights version {ref.version} came as other arrays than were published: their digests differ; "
                f"version {self.version} stays in force"
            )

    def _compare(self, ref: WeightsRef) -> None:
        canary, bounds = ref.canary, self._bounds
        left = f"version {self.version} stays" if self._llm.restores else "nothing is"
        logprobs, embeds = self._engine.prompt_logprobs(canary.token_ids), self._policy.canary_embeds()
        for what, here, there, bound in (
            ("log-probabilities of the LLM", logprobs, canary.logprobs, bounds.logprobs),
            ("visual tokens of the extractor", embeds, canary.embeds, bounds.embeds),
        ):
            gap, most = largest_gap(here, there), bound.of(there)
            if not gap <= most:  # a NaN gap fails too
                raise WeightsError(
                    f"weights version {ref.version} failed its canary: the {what} differ by {gap:.3g} from the "
                    f"publisher's (at most {most:g}); {left} in force"
                )


class _Merged:
    """All of the LLM comes in the arrays."""

    restores = True

    def __init__(self, engine: RolloutEngine, llm: PreTrainedModel) -> None:
        self._engine = engine
        self._embeddings = embeddings_name(llm)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            f"llm.{name}": shape for name, shape in engine.weight_shapes.items()
        }

    def load(self, ref: WeightsRef, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        llm = _under("llm.", tensors)
        self._engine.load_weights(llm, ref.version)
        return llm[self._embeddings]


class _Adapter:
    """The adapter of a LoRA model comes in the arrays; its base is here, in host memory."""

    restores = True

    def __init__(self, engine: RolloutEngine, llm: PreTrainedModel) -> None:
        self._engine = engine
        self._embeddings = embeddings_name(llm)
        adapter = adapter_state_dict(llm)
        self.shapes: Mapping[str, tuple[int, ...]] = {f"adapter.{n}": tuple(t.shape) for n, t in adapter.items()}
        self._layers = adapted_layers(llm)
        self._base = {name: value.cpu() for name, value in base_state_dict(llm).items()}

    def load(self, ref: WeightsRef, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        llm = merge(self._base, _under("adapter.", tensors), self._layers)
        self._engine.load_weights(llm, ref.version)
        return llm[self._embeddings]


def keep_embeddings_alone(policy: ReportPolicy) -> torch.Tensor:
    """Drops the layers and adapters of the policy's LLM, which an engine has; returns its token embeddings.

    Prompts can still be made; `policy.llm` can't be called any more.
    """
    remove_lora(policy.llm)
    embeddings: torch.Tensor = policy.llm.get_input_embeddings().weight
    for parameter in policy.llm.parameters():
        if parameter is not embeddings:
            parameter.data = parameter.data.new_empty(0)
    return embeddings


def embeddings_name(llm: PreTrainedModel) -> str:
    """The name of the token embeddings among the parameters."""
    embeddings = llm.get_input_embeddings().weight
    name: str = next(name for name, value in llm.named_parameters() if value is embeddings)
    return name


def weights_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Names published arrays: of their names, dtypes, shapes, and every one of their bytes.

    Hashing all bytes takes a second a gigabyte, at the publisher and in every actor: 7 s for 1.5 B parameters. So each
    array is cut into rows of 64 KiB, the rows are added up (as integers, at the speed of memory: below 1 s), and the
    sum is hashed, with the rest that fills no row. One changed bit anywhere changes it; exchanged rows of one array
    do not, which no wrong version and no damage brings about. A sample alone would not do: in bfloat16 a step of RL
    changes few values.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        data = array.reshape(-1).view(np.uint8)
        whole = len(data) - len(data) % ROW
        digest.update(data[:whole].view(np.uint64).reshape(-1, ROW // 8).sum(axis=0, dtype=np.uint64).tobytes())
        digest.update(data[whole:].tobytes())
    return digest.hexdigest()


def fetch(ref: WeightsRef, timeout_s: float) -> Mapping[str, npt.NDArray[Any]]:
    """The arrays of `ref`: a mapping as it is, a Ray object fetched (zero-copy where it is on this host)."""
    if isinstance(ref.tensors, Mapping):
        return ref.tensors
    import ray
    from ray.exceptions import RayError

    try:
        tensors: Mapping[str, npt.NDArray[Any]] = ray.get(ref.tensors, timeout=timeout_s)
    except RayError as error:  # GetTimeoutError and lost objects alike
        raise WeightsError(
            f"weights version {ref.version} did not arrive within rollout.timeout_s={timeout_s:g} s: {error}"
        ) from error
    return tensors


def as_array(value: torch.Tensor) -> npt.NDArray[Any]:
    """A copy in host memory, as it is published. Of bfloat16, which numpy lacks, the bits, in uint16."""
    copy = value.detach().to("cpu", copy=True).contiguous()
    array: npt.NDArray[Any] = (copy.view(torch.uint16) if copy.dtype == torch.bfloat16 else copy).numpy()
    return array


def as_tensors(arrays: Mapping[str, npt.NDArray[Any] | torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors over the memory of what `as_array` gave."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; torch warns of each, and we only read them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    return {n: t.view(torch.bfloat16) if t.dtype == torch.uint16 else t for n, t in tensors.items()}


def largest_gap(here: npt.NDArray[np.float32], there: npt.NDArray[np.float32]) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    return float(np.abs(here - there).max()) if here.shape == there.shape else float("inf")


def _same(a: WeightsRef, b: WeightsRef) -> bool:
    # A resumed run counts its versions again: digest and canary tell whether the number stands for the same weights.
    return a.version == b.version and a.digest == b.digest and _bits(a.canary) == _bits(b.canary)


def _bits(canary: Canary) -> bytes:
    return canary.logprobs.tobytes() + canary.embeds.tobytes()


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
