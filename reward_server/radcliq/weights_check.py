"""Checks a weights folder: what is there loads as the server would load it, and fits together.

Contract: `check` does not raise for what it finds; a finding says what is wrong and how to get what is missing. Whether
a fixed pair scores as it should is the server's self-check, not this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from reward_server.errors import RewardSetupError
from reward_server.radcliq.bertscore import BertScore
from reward_server.radcliq.chexbert import CheXbert
from reward_server.radcliq.pretrained import load_tokenizer
from reward_server.radcliq.radgraph.archive import read_config
from reward_server.radcliq.radgraph.model import RadGraphModel
from reward_server.radcliq.weights import MissingWeightsError, WeightsFolder, load_tensors, sha256, weights_file

ARCHIVES = ("radgraph", "radgraph-xl")
PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
# A tokenizer has the files of one of these.
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))

State = Literal["ok", "missing", "wrong", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """A part of the weights folder. `sha256`: of its file, or of all files of its folder; `note`: why it is not ok."""

    part: str
    state: State
    path: Path | None = None
    sha256: str = ""
    note: str = ""


def check(root: Path, radgraph: str = "radgraph") -> list[Finding]:
    """Every part that a server with the archive `radgraph` needs, and the other archives that are there."""
    folder = WeightsFolder(root, radgraph)
    findings = [
        _look("chexbert.pth", lambda: folder.chexbert, partial(_check_chexbert, folder)),
        _look("bert-base-uncased", lambda: folder.bert, _check_tokenizer),
        _look("distilroberta-base", lambda: folder.roberta, _check_roberta),
    ]
    backbones: dict[str, None] = {}
    for name in dict.fromkeys((radgraph, *ARCHIVES)):
        finding = _look(name, partial(_archive, root, name), partial(_check_radgraph, folder))
        if name == radgraph or finding.state != "missing":
            findings.append(finding)
            backbones[_backbone_name(finding.path)] = None
    return findings + [_look(name, partial(folder.backbone, name), _check_tokenizer) for name in backbones]


def _look(part: str, find: Callable[[], Path], verify: Callable[[Path], None]) -> Finding:
    try:
        path = find()
    except MissingWeightsError as error:
        return Finding(part, "missing", note=str(error))
    except RewardSetupError as error:
        return Finding(part, "wrong", note=str(error))
    try:
        verify(path)
    except MissingWeightsError as error:
        return Finding(part, "unchecked", path, sha256(path), str(error))
    except RewardSetupError as error:
        return Finding(part, "wrong", path, sha256(path), str(error))
    return Finding(part, "ok", path, sha256(path))


def _archive(root: Path, name: str) -> Path:
    return WeightsFolder(root, name).radgraph


def _backbone_name(archive: Path | None) -> str:
    """The model that a RadGraph archive names; the published ones', if it can't be read."""
    try:
        return read_config(archive).model_name if archive else PUBMEDBERT
    except RewardSetupError:
        return PUBMEDBERT


def _check_chexbert(folder: WeightsFolder, file: Path) -> None:
    CheXbert(file, folder.bert, "cpu", torch.float32)
    _check_rows(load_tensors(file), folder.bert, file)


def _check_roberta(folder: Path) -> None:
    _check_tokenizer(folder)
    BertScore(folder, "cpu", torch.float32)
    file = weights_file(folder)
    _check_rows(load_tensors(file), folder, file)


def _check_radgraph(folder: WeightsFolder, archive: Path) -> None:
    RadGraphModel.load(archive, folder.backbone, torch.device("cpu"), torch.float32)
    file = weights_file(archive)
    _check_rows(load_tensors(file), folder.backbone(read_config(archive).model_name), file)


def _check_tokenizer(folder: Path) -> None:
    """The tokenizer has the vocabulary that the model's config says: another model's would score nonsense."""
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        choices = " or ".join(" and ".join(names) for names in _TOKENIZERS)
        raise RewardSetupError(f"{folder} has no tokenizer ({choices}): download it again")
    words, known = _vocabulary_size(folder), len(load_tokenizer(folder))
    if known != words:
        raise RewardSetupError(f"{folder}: the tokenizer knows {known} word pieces, config.json says {words}")


def _check_rows(tensors: Mapping[str, Tensor], folder: Path, file: Path) -> None:
    """The checkpoint has a row for every word piece of its tokenizer."""
    words = _vocabulary_size(folder)
    for name, tensor in tensors.items():
        if name.endswith("embeddings.word_embeddings.weight") and len(tensor) != words:
            raise RewardSetupError(f"{file} has {len(tensor)} word pieces, {folder / 'config.json'} says {words}")


def _vocabulary_size(folder: Path) -> int:
    file = folder / "config.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RewardSetupError(f"{file} can't be read ({error}): download it again") from error
