"""A tokenizer for a language model from scratch, trained on the training reports.

Contract: byte-level BPE: every text comes back as it was, and the same reports always give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_SPECIAL: Final = [PAD, BOS, EOS]


def train_tokenizer(reports: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """At most `vocab_size` entries, special ones and the 256 bytes included; fewer where the reports are few."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(reports, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
