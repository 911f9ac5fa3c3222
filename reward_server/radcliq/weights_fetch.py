"""Downloads what the weights folder of the `published` backend needs from the Hugging Face hub.

Contract: only through huggingface_hub, which knows proxies, mirrors and tokens; a file that is there is not fetched
again, a file appears complete or not at all. Sources and licences: docs/reward_weights.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights import SCORERS
from reward_server.radcliq.weights_check import PUBMEDBERT

TERMS = (
    f"chexbert.pth and the RadGraph archives come from https://huggingface.co/{SCORERS}. They were trained on reports"
    " under the terms of CheXpert and MIMIC-CXR: read the licences of that repository, of CheXbert"
    " (https://github.com/stanfordmlgroup/CheXbert) and of RadGraph (https://physionet.org/content/radgraph/1.0.0/),"
    " then run this again with --accept-terms. Otherwise get access to RadGraph on PhysioNet and put its"
    " models/model_checkpoint/model.tar.gz here as radgraph.tar.gz, and ask the authors of CheXbert for chexbert.pth."
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
    root.mkdir(parents=True, exist_ok=True)
    for source in (*_OPEN, *_restricted(radgraph, accept_terms)):
        for name in source.files:
            target = root / source.folder / name
            if target.is_file():
                say(f"{target}: is there")
                continue
            say(f"{target}: fetching from {source.repository}")
            _download(source, name, target.parent)


def _restricted(radgraph: str, accept_terms: bool) -> Iterator[Source]:
    if accept_terms:
        yield Source(SCORERS, "", ("chexbert.pth", f"{radgraph}.tar.gz"))


def _download(source: Source, name: str, folder: Path) -> None:
    try:
        hf_hub_download(source.repository, name, local_dir=folder)
    except (HfHubHTTPError, EntryNotFoundError, httpx.HTTPError, OSError) as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise RewardSetupError(
            f"{name} of {source.repository} can't be downloaded ({why}). Is there a way to the Hugging Face hub from"
            " here (HF_ENDPOINT, HTTPS_PROXY, HF_HUB_OFFLINE)? If not, run this command on a machine that has one and"
            f" copy {folder} over"
        ) from error
