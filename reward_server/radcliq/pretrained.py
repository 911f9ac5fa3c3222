"""What stands in the folder of a pretrained model beside its weights: the sizes and the tokenizer.

Contract: whatever is missing, damaged or of another kind is a RewardSetupError that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from reward_server.errors import RewardSetupError
from reward_server.radcliq.encoder import EncoderConfig


def encoder_config(folder: Path) -> EncoderConfig:
    """The sizes in the folder's `config.json`."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardSetupError(f"{file} can't be read ({error}): download it again") from error
    if not isinstance(config, dict):
        raise RewardSetupError(f"{file} is not a model's config: download it again")
    return EncoderConfig.from_json(config, str(file))


def load_tokenizer(folder: Path, **options: bool) -> Any:
    """The tokenizer in the folder."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the library raises what its parsers raise, of every kind
        raise RewardSetupError(f"the tokenizer in {folder} can't be read ({error}): download it again") from error
