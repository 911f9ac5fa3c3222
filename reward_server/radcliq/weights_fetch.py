"""Downloads what the weights folder of the `published` backend needs from the Hugging Face hub.

Contract: only through huggingface_hub, which knows proxies, mirrors and tokens; a file that is there is not fetched
again, a file appears complete or not at all. Sources and licences: docs/reward_weights.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2: the one that it uses

from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights import SCORERS
from reward_server.radcliq.weights_check import PUBMEDBERT
from reward_server.radcliq.weights_hint import fetch_command


def terms(root: Path) -> str:
    """What is to be read before the files under terms are fetched into the folder, and how it is said that it was."""
    return (
        f"chexbert.pth and the RadGraph archives come from https://huggingface.co/{SCORERS}. They were trained on"
        " reports under the terms of CheXpert and MIMIC-CXR: read the licences of that repository, of CheXbert"
        " (https://github.com/stanfordmlgroup/CheXbert) and of RadGraph"
        " (https://physionet.org/content/radgraph/1.0.0/), then run"
        f" `{fetch_command(root, accept_terms=True)}`. Otherwise get access to RadGraph on PhysioNet and put its"
        f" models/model_checkpoint/model.tar.gz into {root} as radgraph.tar.gz, and ask the authors of CheXbert for"
        " chexbert.pth."
    )


@dataclass(frozen=True)
class Source:
    """Files of a hub repository, and the folder in the weights folder where they go."""

    repository: str
    folder: str
    files: tuple[str, ...]


_OPEN = (
    Source(
        "distilbert/distilroberta-base",
        "distilroberta-base",
        ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "model.safetensors"),
    ),
    Source(
        "google-bert/bert-base-uncased",
        "bert-base-uncased",
        ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt"),
    ),
    Source(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",  # PubMedBERT's name today
        PUBMEDBERT,
        ("config.json", "tokenizer_config.json", "vocab.txt"),
    ),
)


def fetch(root: Path, radgraph: str, *, accept_terms: bool, say: Callable[[str], None]) -> None:
    """Downloads what is missing below `root`; tells `say` about every file.

    Raises RewardSetupError where the hub can't be reached or refuses. Without `accept_terms` the files under terms are
    left out.
    """
    for source in (*_OPEN, *_restricted(radgraph, accept_terms)):
        for name in source.files:
            target = root / source.folder / name
            if target.is_file():
                say(f"{target}: is there")
                continue
            say(f"{target}: fetching from {source.repository}")
            _download(source, name, root)


def _restricted(radgraph: str, accept_terms: bool) -> Iterator[Source]:
    if accept_terms:
        yield Source(SCORERS, "", ("chexbert.pth", f"{radgraph}.tar.gz"))


def _download(source: Source, name: str, root: Path) -> None:
    folder = root / source.folder
    try:
        # hf_hub_download alone would try for most of a minute where there is no network, and tell of every try.
        get_hf_file_metadata(hf_hub_url(source.repository, name))
        hf_hub_download(source.repository, name, local_dir=folder)
    except (HfHubHTTPError, EntryNotFoundError, httpx.HTTPError, OSError) as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise RewardSetupError(
            f"{name} of {source.repository} can't be downloaded ({why}). Is there a way to the Hugging Face hub from"
            " here (HF_ENDPOINT, HTTPS_PROXY, HF_HUB_OFFLINE)? If not, run this command on a machine that has one and"
            f" copy the whole folder {root} over"
        ) from error
    finally:
        _tidy(folder, root)


def _tidy(folder: Path, root: Path) -> None:
    """Takes away what the hub's library keeps beside its files, unless a download can go on from there."""
    kept = folder / ".cache"
    if not any(kept.rglob("*.incomplete")):
        shutil.rmtree(kept, ignore_errors=True)
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
