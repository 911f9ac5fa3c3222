"""Writes random-weight checkpoints of RadCliQ's models in the published formats and layout.

    python -m benchmarks.checkpoints --size mini|full --out DIR [--seed N] [--byte-pairs FOLDER]

Contract: DIR becomes a weights folder of the `published` backend (docs/reward_weights.md) with, besides,
`physionet/model.tar.gz` and `physionet/radgraph/`: the network of `radgraph.tar.gz` in the naming of PhysioNet's files.
`mini` takes a few seconds and megabytes; `full` has the published sizes, 2.6 GB. The scores mean nothing, but labels,
graphs and scores vary from report to report. The same size and seed give the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from benchmarks.radgraph_archive import BACKBONE, Shape, random_network, with_backbone, write_archive
from benchmarks.reports import report_pairs
from benchmarks.vocabularies import (
    Vocabularies,
    full_vocabularies,
    mini_vocabularies,
    write_bert_tokenizer,
    write_roberta_tokenizer,
)

Size = Literal["mini", "full"]
_ENTITIES = ("OBS-DP", "ANAT-DP", "OBS-U", "OBS-DA")
_XL_ENTITIES = (
    "Anatomy::definitely present",
    "Anatomy::uncertain",
    "Observation::definitely present",
    "Observation::definitely absent",
    "Observation::uncertain",
    "Observation::measurement::definitely present",
)


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    heads: int
    wide: int
    bert_layers: int
    forward: int  # of RadGraph's feed-forward networks


_MINI, _FULL = _Sizes(64, 4, 128, 2, 24), _Sizes(768, 12, 3072, 12, 150)


def write_checkpoints(out: Path, size: Size, seed: int = 0, byte_pairs: Path | None = None) -> None:
    """Writes everything below `out`. `byte_pairs`: a folder with GPT-2's encoder.json and vocab.bpe, for `full`."""
    sizes, vocabularies = (_MINI, mini_vocabularies()) if size == "mini" else (_FULL, full_vocabularies(byte_pairs))
    generator = torch.Generator().manual_seed(seed)
    texts = [reference for reference, _ in report_pairs(24, seed=3)]
    # Threads only wait for each other on models of this size.
    with torch.inference_mode(), _threads(1 if size == "mini" else torch.get_num_threads()):
        _write_roberta(out / "distilroberta-base", sizes, vocabularies, generator)
        _write_chexbert(out, sizes, vocabularies, texts, generator)
        backbone = out / BACKBONE
        config = _bert_config(sizes, len(vocabularies.pubmed))
        write_bert_tokenizer(backbone, vocabularies.pubmed, only_vocabulary=True)
        _write_config(backbone, config, "BertForMaskedLM")
        shape = Shape("radgraph", _ENTITIES, sizes.hidden, sizes.forward)
        _write_physionet(out / "physionet", shape, _write_radgraph(out, shape, config, texts, generator))
        # Other sizes than RadGraph's, so that sizes which are not read from the archive show.
        large = Shape("radgraph-xl", _XL_ENTITIES, sizes.hidden, sizes.forward + 10, 24, 10, 0.6)
        _write_radgraph(out, large, config, texts, generator)
        shutil.rmtree(out / large.namespace)  # an archive only


def _write_roberta(folder: Path, sizes: _Sizes, vocabularies: Vocabularies, generator: torch.Generator) -> None:
    """A masked language model, as published: its encoder's tensors have a prefix, and there is a head."""
    write_roberta_tokenizer(folder, vocabularies.pairs, vocabularies.merges)
    config = RobertaConfig(
        vocab_size=len(vocabularies.pairs), hidden_size=sizes.hidden, num_hidden_layers=6,
        num_attention_heads=sizes.heads, intermediate_size=sizes.wide, max_position_embeddings=514, type_vocab_size=1,
        layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    _write_config(folder, config, "RobertaForMaskedLM")
    model = _random_model(RobertaModel(config, add_pooling_layer=False), generator, attention=1.2)
    tensors = {f"roberta.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    tensors["lm_head.bias"] = torch.zeros(len(vocabularies.pairs))
    tensors["lm_head.dense.weight"] = torch.eye(sizes.hidden)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_chexbert(
    out: Path, sizes: _Sizes, vocabularies: Vocabularies, texts: list[str], generator: torch.Generator
) -> None:
    """A training checkpoint of a DataParallel module, in torch's format before 1.6, whose labels vary."""
    folder = out / "bert-base-uncased"
    write_bert_tokenizer(folder, vocabularies.bert)
    config = _bert_config(sizes, len(vocabularies.bert))
    _write_config(folder, config, "BertForMaskedLM")
    model = _random_model(BertModel(config), generator, attention=2.5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts]
    mean, spread = torch.stack(states).mean(0), torch.stack(states).std(0)
    tensors = {f"module.bert.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for i in range(14):
        weight = torch.randn(4 if i < 13 else 2, sizes.hidden, generator=generator) / (spread + 0.01)
        tensors[f"module.linear_heads.{i}.weight"] = weight
        tensors[f"module.linear_heads.{i}.bias"] = -(weight @ mean)
    checkpoint = {"epoch": 1, "model_state_dict": tensors, "optimizer_state_dict": {"state": {}, "param_groups": []}}
    torch.save(checkpoint, out / "chexbert.pth", _use_new_zipfile_serialization=False)


def _write_radgraph(
    out: Path, shape: Shape, config: PreTrainedConfig, texts: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """NAME/ and NAME.tar.gz, with a backbone of its own; gives the tensors."""
    model = _random_model(BertModel(config), generator, attention=0.3)
    tokenizer = AutoTokenizer.from_pretrained(out / BACKBONE)
    words = [_words(model, tokenizer, text) for text in texts]
    tensors = with_backbone(random_network(shape, words, generator), model.state_dict())
    write_archive(out / shape.namespace, shape, tensors)
    _pack(out / shape.namespace, out / f"{shape.namespace}.tar.gz")
    return tensors


def _write_physionet(out: Path, shape: Shape, tensors: dict[str, Tensor]) -> None:
    """PhysioNet's documents name no data set, and its libraries are older."""
    renamed = {name.replace(f"{shape.namespace}__", "None__"): tensor for name, tensor in tensors.items()}
    embeddings = next(name for name in renamed if name.endswith("embeddings.position_embeddings.weight"))
    renamed[embeddings.replace("position_embeddings.weight", "position_ids")] = torch.arange(512)[None]
    write_archive(out / "radgraph", replace(shape, namespace="None"), renamed, legacy=True)
    _pack(out / "radgraph", out / "model.tar.gz")


def _words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The mean state of the pieces of every word."""
    words = re.findall(r"\w+|[^\w\s]", text)
    pieces = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    ids = [tokenizer.cls_token_id, *(piece for word in pieces for piece in word), tokenizer.sep_token_id]
    states = model(torch.tensor([ids])).last_hidden_state[0, 1:-1]
    return torch.stack([part.mean(0) for part in states.split([len(word) for word in pieces])])


def _random_model(model: PreTrainedModel, generator: torch.Generator, attention: float) -> PreTrainedModel:
    """Fills all tensors. The weights are large enough for states to differ from token to token; the larger those of
    `attention`, the more they depend on the whole report."""
    unit = model.config.hidden_size**-0.5
    for name, tensor in model.state_dict().items():
        if name.endswith("LayerNorm.weight"):
            tensor.normal_(1, 0.1, generator=generator)
        elif name.endswith(".bias"):
            tensor.normal_(0, 0.05, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, (attention if "attention" in name else 1.2) * unit, generator=generator)
    return model.eval()


def _bert_config(sizes: _Sizes, words: int) -> PreTrainedConfig:
    return BertConfig(
        vocab_size=words, hidden_size=sizes.hidden, num_hidden_layers=sizes.bert_layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.wide, max_position_embeddings=512,
    )  # fmt: skip


def _write_config(folder: Path, config: PreTrainedConfig, architecture: str) -> None:
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [architecture]}, indent=2))


def _pack(folder: Path, archive: Path) -> None:
    """A tar.gz, not compressed: random numbers can't be."""
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints",
        description=__doc__.partition("\n")[0],
        epilog="The folder is one for `--weights` of the `published` backend: docs/reward_weights.md.",
    )
    parser.add_argument(
        "--size", choices=("mini", "full"), required=True, help="mini: seconds, 7 MB; full: the published sizes, 2.6 GB"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="weights folder that is written")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default: %(default)s)")
    parser.add_argument(
        "--byte-pairs", type=Path, metavar="FOLDER", help="for full: with GPT-2's encoder.json and vocab.bpe"
    )
    args = parser.parse_args()
    write_checkpoints(args.out, args.size, args.seed, args.byte_pairs)


if __name__ == "__main__":
    main()
