"""A BERT or RoBERTa encoder on packed sequences: no padding between them, and the same bits in any company.

Contract: what a sequence gives depends on nothing but that sequence. A matrix product may round a row differently when
the number of rows changes, so every product here has one fixed shape: the rows of all sequences stand in one matrix
that is cut into blocks of `block` rows, the last one filled up. Attention runs on one sequence at a time. Inference
only; a model's weights are shared by all threads, a call uses torch's threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.errors import RewardSetupError

# Rows of a matrix product. On CPUs more would not be faster, and make the answer to a single pair late; a GPU wants
# more.
CPU_BLOCK, GPU_BLOCK = 256, 4096
# Rows in hand at once: bounds memory (some 100 MB with 768 numbers a row).
_PACK_ROWS = 4096


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder, named as in its `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    max_position_embeddings: int
    first_position: int  # 0 in BERT; after the padding's position in RoBERTa

    @classmethod
    def from_json(cls, config: Mapping[str, object], name: str) -> EncoderConfig:
        """Of a Hugging Face `config.json`; RewardSetupError names `name` and what is missing or not supported."""
        kind = config.get("model_type")
        if kind not in ("bert", "roberta"):
            raise RewardSetupError(f"{name}: model_type {kind!r}; this encoder runs bert and roberta")
        if config.get("hidden_act", "gelu") != "gelu":
            raise RewardSetupError(f"{name}: hidden_act {config['hidden_act']!r}; this encoder runs gelu")
        try:
            return cls(
                hidden_size=int(str(config["hidden_size"])),
                num_hidden_layers=int(str(config["num_hidden_layers"])),
                num_attention_heads=int(str(config["num_attention_heads"])),
                layer_norm_eps=float(str(config["layer_norm_eps"])),
                max_position_embeddings=int(str(config["max_position_embeddings"])),
                first_position=int(str(config["pad_token_id"])) + 1 if kind == "roberta" else 0,
            )
        except (KeyError, ValueError) as error:
            raise RewardSetupError(f"{name}: {error} is missing or not a number") from error


class _Linear:
    """A block of rows times the weights, plus the bias."""

    def __init__(self, weight: Tensor, bias: Tensor, block: int) -> None:
        self._bias, self._block = bias, block
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
            # MKL would bring the weights into its own order for every product: once is enough (10 % of the time).
            # What it is given in their place has their shape and no memory.
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, block)
            weight = weight.new_zeros(1, 1).expand(weight.shape)
        self._weight = weight

    def __call__(self, rows: Tensor) -> Tensor:
        if self._packed is None:
            return torch.addmm(self._bias, rows, self._weight.t())
        product: Tensor = torch.ops.mkl._mkl_linear(rows, self._packed, self._weight, self._bias, self._block)
        return product


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (rows.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Layer:
    query_key_value: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    output_norm: _Norm

    def after_attention(self, context: Tensor, rows: Tensor) -> Tensor:
        """The layer's output for a block of rows."""
        rows = self.attention_norm(self.attention_output(context).add_(rows))
        return self.output_norm(self.down(F.gelu(self.up(rows))).add_(rows))


class PackedEncoder:
    """`encode` gives the last hidden states of sequences of token ids."""

    def __init__(
        self, tables: tuple[Tensor, Tensor], norm: _Norm, layers: Sequence[_Layer], config: EncoderConfig, block: int
    ) -> None:
        self._words, self._positions = tables
        self._norm, self._layers, self._config, self._block = norm, layers, config, block

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        config: EncoderConfig,
        *,
        layers: int | None = None,
        prefix: str = "",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        block: int | None = None,
    ) -> PackedEncoder:
        """From a checkpoint's tensors under `prefix` (the rest of it is not looked at).

        `layers`: only the first so many. `block`: rows of a matrix product (default: what suits the device).
        Raises RewardSetupError where a tensor is missing or has another shape than `config` says.
        """
        chosen = block or (CPU_BLOCK if torch.device(device).type == "cpu" else GPU_BLOCK)
        take = _Taker(tensors, prefix, device, dtype, chosen)
        hidden, eps = config.hidden_size, config.layer_norm_eps
        found = [
            _layer(take, f"encoder.layer.{i}.", hidden, eps)
            for i in range(config.num_hidden_layers if layers is None else layers)
        ]
        words = take("embeddings.word_embeddings.weight", None, hidden)
        positions = take("embeddings.position_embeddings.weight", config.max_position_embeddings, hidden)
        positions = positions + take("embeddings.token_type_embeddings.weight", None, hidden)[0]
        norm = _norm(take, "embeddings.LayerNorm.", hidden, eps)
        return cls((words, positions), norm, found, config, chosen)

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens."""
        return self._config.max_position_embeddings - self._config.first_position

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Sequence[int]], *, first_only: bool = False) -> list[Tensor]:
        """The hidden states of every sequence, [tokens, hidden]; with `first_only`, of its first token, [1, hidden].

        Raises ValueError for a sequence that is empty or longer than `max_length`.
        """
        for i, sequence in enumerate(sequences):
            if not 0 < len(sequence) <= self.max_length:
                raise ValueError(f"sequence {i} has {len(sequence)} tokens; 1 to {self.max_length} can be encoded")
        states: list[Tensor] = []
        for pack in _packs(sequences):
            states += self._encode_pack(pack, first_only)
        return states

    def _encode_pack(self, sequences: Sequence[Sequence[int]], first_only: bool) -> list[Tensor]:
        lengths = [len(sequence) for sequence in sequences]
        rows = self._filled(self._embed(sequences, lengths))
        # The same memory for all layers: to get and clear it takes as long as some of the computation.
        mixed, context = rows.new_empty(len(rows), 3 * rows.shape[1]), torch.zeros_like(rows)
        for layer in self._layers[: -1 if first_only else None]:
            self._attend(layer, rows, mixed, context, lengths)
            self._finish(layer, rows, context)
        if not first_only:
            return [state.clone() for state in torch.split(rows[: sum(lengths)], lengths)]
        layer, firsts = self._layers[-1], [sum(lengths[:i]) for i in range(len(lengths))]
        self._attend(layer, rows, mixed, context, lengths, first_only=True)
        rows, context = self._filled(rows[firsts]), self._filled(context[: len(lengths)])
        self._finish(layer, rows, context)
        return [state.clone() for state in torch.split(rows[: len(lengths)], 1)]

    def _embed(self, sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        device = self._words.device
        ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
        first = self._config.first_position
        positions = torch.cat([torch.arange(first, first + length, device=device) for length in lengths])
        return self._norm(self._words[ids] + self._positions[positions])

    def _attend(
        self,
        layer: _Layer,
        rows: Tensor,
        mixed: Tensor,
        context: Tensor,
        lengths: Sequence[int],
        *,
        first_only: bool = False,
    ) -> None:
        """Fills `context` with what the tokens (or the first) of every sequence see of each other, a row for each."""
        for start in range(0, len(rows), self._block):
            mixed[start : start + self._block] = layer.query_key_value(rows[start : start + self._block])
        start, place = 0, 0
        for length in lengths:
            query, key, value = self._heads(mixed[start : start + length])
            asked = 1 if first_only else length
            seen = _attention(query[:, :asked], key, value)
            context[place : place + asked].view(asked, len(seen), -1).copy_(seen.transpose(0, 1))
            start, place = start + length, place + asked

    def _finish(self, layer: _Layer, rows: Tensor, context: Tensor) -> None:
        """The layer after its attention, in the place of its input."""
        for start in range(0, len(rows), self._block):
            part = rows[start : start + self._block]
            part.copy_(layer.after_attention(context[start : start + self._block], part))

    def _filled(self, rows: Tensor) -> Tensor:
        """Rows with zeros behind, up to a multiple of the block's rows."""
        return F.pad(rows, (0, 0, 0, -len(rows) % self._block))

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[tokens, 3 x hidden] to three times [heads, tokens, size of a head]."""
        split = mixed.view(len(mixed), 3, self._config.num_attention_heads, -1).permute(1, 2, 0, 3)
        return split[0], split[1], split[2]


class _Taker:
    """Takes tensors of a checkpoint, with their shape checked."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, device: str, dtype: torch.dtype, block: int) -> None:
        self._tensors, self._prefix, self._device, self._dtype = tensors, prefix, device, dtype
        self.block = block

    def __call__(self, name: str, *shape: int | None) -> Tensor:
        full = self._prefix + name
        if full not in self._tensors:
            raise RewardSetupError(f"the checkpoint has no tensor {full!r}")
        tensor = self._tensors[full]
        if len(tensor.shape) != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        ):
            raise RewardSetupError(f"the tensor {full!r} has the shape {list(tensor.shape)}, expected {list(shape)}")
        return tensor.to(self._device, self._dtype, copy=True)


def _layer(take: _Taker, name: str, hidden: int, eps: float) -> _Layer:
    parts = [f"{name}attention.self.{part}." for part in ("query", "key", "value")]
    weights, biases = (
        torch.cat([take(f"{part}{kind}", *shape) for part in parts])
        for kind, shape in (("weight", (hidden, hidden)), ("bias", (hidden,)))
    )
    return _Layer(
        query_key_value=_Linear(weights, biases, take.block),
        attention_output=_linear(take, f"{name}attention.output.dense.", hidden, hidden),
        attention_norm=_norm(take, f"{name}attention.output.LayerNorm.", hidden, eps),
        up=_linear(take, f"{name}intermediate.dense.", None, hidden),
        down=_linear(take, f"{name}output.dense.", hidden, None),
        output_norm=_norm(take, f"{name}output.LayerNorm.", hidden, eps),
    )


def _linear(take: _Taker, name: str, outputs: int | None, inputs: int | None) -> _Linear:
    return _Linear(take(f"{name}weight", outputs, inputs), take(f"{name}bias", outputs), take.block)


def _norm(take: _Taker, name: str, hidden: int, eps: float) -> _Norm:
    return _Norm(take(f"{name}weight", hidden), take(f"{name}bias", hidden), eps)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of one sequence, each [heads, tokens, size]."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    # On CPUs torch's fused kernel takes half as long again for the length of a report.
    scale = 1 / math.sqrt(query.shape[-1])
    similar = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(similar.softmax(dim=-1), value)


def _packs(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Sequences in their order, in groups of at most `_PACK_ROWS` tokens."""
    pack: list[Sequence[int]] = []
    rows = 0
    for sequence in sequences:
        if pack and rows + len(sequence) > _PACK_ROWS:
            yield pack
            pack, rows = [], 0
        pack.append(sequence)
        rows += len(sequence)
    if pack:
        yield pack
