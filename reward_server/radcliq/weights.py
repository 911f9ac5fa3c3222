"""The weights folder of the `published` backend: where each file is, safe loading, hashes.

Contract: the layout is

    chexbert.pth                  (or chexbert.safetensors)
    radgraph/ or radgraph.tar.gz  a DyGIE++ archive: config.json, weights.th or model.safetensors, vocabulary/;
                                  also radgraph-xl/ or radgraph-xl.tar.gz, by the option `radgraph`
    distilroberta-base/           config, tokenizer, weights
    bert-base-uncased/            config, tokenizer
    microsoft/BiomedNLP-.../      config, tokenizer of RadGraph's backbone, under the name in RadGraph's config.json

and anything of it may be a folder of the Hugging Face cache instead (`models--org--name/snapshots/REVISION`), the first
two files inside `models--StanfordAIMI--RRG_scorers`. Only safetensors and `torch.load(weights_only=True)` read weights.
Every problem is a RewardSetupError that names the path and the way out.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights_archive import unpack
from reward_server.radcliq.weights_hint import how_to_get, no_folder

SCORERS = "StanfordAIMI/RRG_scorers"
WEIGHT_FILES = ("model.safetensors", "weights.th", "pytorch_model.bin")
# Names under which the hub knows the same model.
_SAME_MODELS = (
    ("distilroberta-base", "distilbert/distilroberta-base"),
    ("bert-base-uncased", "google-bert/bert-base-uncased"),
    (
        "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    ),
)
# Where a checkpoint that holds more than a model keeps it.
_WRAPPERS = ("model_state_dict", "state_dict")
# What torch and safetensors raise on a file that is damaged, or that would run code.
_UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, struct.error, RuntimeError, OSError, EOFError, ValueError, LookupError,
    TypeError,
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


class MissingWeightsError(RewardSetupError):
    """A part of the weights folder is not there; the message says how to get it."""


class WeightsFolder:
    """Finds the parts of a weights folder; each property raises MissingWeightsError where its part is not there."""

    def __init__(self, root: Path, radgraph: str = "radgraph") -> None:
        if not root.is_dir():
            raise MissingWeightsError(no_folder(root))
        if not _NAME.fullmatch(radgraph):
            raise RewardSetupError(f"radgraph={radgraph!r} does not name an archive in {root}, as radgraph-xl would")
        self.root, self._radgraph = root, radgraph

    @property
    def chexbert(self) -> Path:
        """The checkpoint file of CheXbert."""
        places = (self.root / "chexbert.pth", self.root / "chexbert.safetensors", *self._scorers("chexbert.pth"))
        return self._first(places, "CheXbert's checkpoint chexbert.pth")

    @property
    def bert(self) -> Path:
        """The folder with CheXbert's config and tokenizer."""
        return self.backbone("bert-base-uncased")

    @property
    def roberta(self) -> Path:
        """The folder with BERTScore's model."""
        return self.backbone("distilroberta-base")

    @property
    def radgraph(self) -> Path:
        """The folder with RadGraph's config.json, weights and vocabulary; an archive is unpacked once."""
        name = self._radgraph
        archive = name if name.endswith(".tar.gz") else f"{name}.tar.gz"
        places = (self.root / name, self.root / archive, *self._scorers(archive))
        found = self._first(places, f"the RadGraph archive {archive} (or the folder {name})")
        if found.is_file():
            found = _unpacked(found, self.root)
        if not (found / "config.json").is_file():
            raise RewardSetupError(f"{found} has no config.json: it is not a RadGraph archive; {how_to_get(self.root)}")
        return found

    def backbone(self, model_name: str) -> Path:
        """The folder of the model that the hub calls `model_name`."""
        if not _NAME.fullmatch(model_name):
            raise RewardSetupError(f"{model_name!r} is not a model's name on the Hugging Face hub")
        same = [names for names in _SAME_MODELS if model_name in names]
        names = dict.fromkeys((model_name, *(name for names in same for name in names)))
        plain = [self.root / name for name in names]
        cached = [folder for name in names for folder in self._snapshots(name)]
        places = [place for place in (*plain, *cached) if (place / "config.json").is_file()]
        return self._first(places, f"the folder {model_name} (with config.json)")

    def _scorers(self, name: str) -> list[Path]:
        return [folder / name for folder in self._snapshots(SCORERS)]

    def _snapshots(self, model_name: str) -> list[Path]:
        """The revisions of a model in a Hugging Face cache under the root; the one that `main` names comes first."""
        cache = self.root / f"models--{model_name.replace('/', '--')}"
        main = cache / "refs" / "main"
        current = main.read_text().strip() if main.is_file() else ""
        return sorted(cache.glob("snapshots/*/"), key=lambda folder: (folder.name != current, folder.name))

    def _first(self, places: Sequence[Path], what: str) -> Path:
        for place in places:
            if place.exists():
                return place
        raise MissingWeightsError(f"{what} is not in the weights folder {self.root}: {how_to_get(self.root)}")


def weights_file(folder: Path) -> Path:
    """The file with a model's tensors in its folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise MissingWeightsError(f"{folder} holds no weights ({', '.join(WEIGHT_FILES)}): copy or download it again")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors or torch file, on the CPU; in a training checkpoint, those of its model.

    Both of torch's formats are read, the zip one mapped from disk; the tensors are not for writing.
    """
    try:
        loaded: object = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except _UNREADABLE as error:
        raise RewardSetupError(
            f"{path} was refused, it is damaged or holds more than tensors ({_why(error)}): "
            "download it again from a source that you trust"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise RewardSetupError(f"{path} does not hold named tensors: download it again from a source that you trust")
    return {str(name): tensor for name, tensor in loaded.items()}


def _load_torch(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def sha256(path: Path) -> str:
    """The hash of a file, or of a folder's sorted names and hashes. A file that did not change is read only once."""
    if not path.is_dir():
        status = path.stat()
        return _file_sha256(path, status.st_size, status.st_mtime_ns)
    total = hashlib.sha256()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    for name, file in sorted(files.items()):
        if name.startswith(".") or "/." in name:  # such as what a download leaves behind
            continue
        total.update(f"{name}\0{sha256(file)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _file_sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpacked(archive: Path, root: Path) -> Path:
    """The archive's content, unpacked beside it or, where that is read-only, in the user's cache."""
    name = sha256(archive)[:32]
    for parent in _unpack_places(root):
        if (parent / name).is_dir():
            return parent / name
    for parent in _unpack_places(root):
        if _writable(parent):
            return unpack(archive, parent / name)
    raise RewardSetupError(
        f"{archive} can't be unpacked: neither {' nor '.join(map(str, _unpack_places(root)))} can be written; "
        "make one writable, set XDG_CACHE_HOME, or unpack the archive yourself"
    )


def _unpack_places(root: Path) -> Iterator[Path]:
    yield root / ".unpacked"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmrrg" / "radgraph"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _why(error: Exception) -> str:
    """The first sentence of torch's long advice, which must not talk anyone into loading the file unsafely."""
    return re.split(r"\n|(?<=[a-z])\. ", str(error).strip())[0][:200] or type(error).__name__
