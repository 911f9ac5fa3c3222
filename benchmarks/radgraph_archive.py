"""A random-weight RadGraph (DyGIE++) network in the published format, with realistic numbers of entities and relations.

Contract: every tensor's name and shape is as in the published archives (also of the modules that RadGraph never runs);
the biases are set on sample reports so that about 0.35 entities and 0.3 relations a word come out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ENTITIES_PER_WORD, RELATIONS_PER_WORD = 0.35, 0.3
RELATIONS = ("modify", "located_at", "suggestive_of")
BACKBONE = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
_ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."


@dataclass(frozen=True)
class Shape:
    """The sizes and labels of an archive. `namespace`: the data set in whose name the labels are kept."""

    namespace: str
    entities: tuple[str, ...]
    hidden: int  # of the backbone
    forward: int  # of the feed-forward networks
    features: int = 20  # of a span's width
    span_width: int = 8
    spans_per_word: float = 0.5

    @property
    def span(self) -> int:
        """The length of a span's vector."""
        return 2 * self.hidden + self.features


def random_network(shape: Shape, words: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """All tensors but the backbone's. `words`: a sample of reports as the backbone sees them, [words, hidden] each."""

    def normal(*size: int, scale: float) -> Tensor:
        return scale * torch.randn(*size, generator=generator)

    def forward_net(name: str, inputs: int) -> dict[str, Tensor]:
        layers = {}
        for i, size in enumerate((inputs, shape.forward)):
            layers[f"{name}._linear_layers.{i}.weight"] = normal(shape.forward, size, scale=1.4 / math.sqrt(size))
            layers[f"{name}._linear_layers.{i}.bias"] = normal(shape.forward, scale=0.05)
        return layers

    def scorer(name: str, outputs: int) -> dict[str, Tensor]:
        weight = normal(outputs, shape.forward, scale=4 / math.sqrt(shape.forward))
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}

    ner, relation = _names(shape.namespace)
    pruner = f"_relation._mention_pruners.{relation}._scorer"
    net = {"_endpoint_span_extractor._span_width_embedding.weight": normal(shape.span_width, shape.features, scale=0.5)}
    net |= forward_net(f"_ner._ner_scorers.{ner}.0._module", shape.span)
    net |= scorer(f"_ner._ner_scorers.{ner}.1._module", len(shape.entities))
    net |= _pruner_like_scorer(net, f"_ner._ner_scorers.{ner}", pruner)
    net |= forward_net(f"_relation._relation_feedforwards.{relation}", 3 * shape.span)
    net |= scorer(f"_relation._relation_scorers.{relation}", len(RELATIONS))
    _calibrate(net, shape, words)
    # Coreference and events are built, saved and never run.
    net |= forward_net("_coref._antecedent_feedforward._module", 3 * shape.span + shape.features)
    net |= forward_net("_coref._mention_pruner._scorer.0._module", shape.span)
    net |= scorer("_coref._mention_pruner._scorer.1._module", 1)
    net |= scorer("_coref._antecedent_scorer._module", 1)
    net["_coref._f_network._linear_layers.0.weight"] = normal(shape.span, 2 * shape.span, scale=0.02)
    net["_coref._f_network._linear_layers.0.bias"] = normal(shape.span, scale=0.02)
    for module in ("_coref", "_events"):
        net[f"{module}._distance_embedding.weight"] = normal(10, shape.features, scale=0.02)
    return net


def write_archive(folder: Path, shape: Shape, tensors: dict[str, Tensor], *, legacy: bool = False) -> None:
    """config.json, weights.th and vocabulary/. `legacy`: in torch's format before 1.6."""
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir(parents=True, exist_ok=True)
    ner, relation = _names(shape.namespace)
    (vocabulary / f"{ner}.txt").write_text("\n".join(("", *shape.entities, "")))
    (vocabulary / f"{relation}.txt").write_text("\n".join((*RELATIONS, "")))
    (vocabulary / "non_padded_namespaces.txt").write_text("*tags\n*labels\n")
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    torch.save(tensors, folder / "weights.th", _use_new_zipfile_serialization=not legacy)


def with_backbone(net: dict[str, Tensor], backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """The archive's tensors with those of the backbone, under its name in the archive."""
    return {**{f"{_ENCODER}{name}": tensor for name, tensor in backbone.items()}, **net}


def _names(namespace: str) -> tuple[str, str]:
    return f"{namespace}__ner_labels", f"{namespace}__relation_labels"


def _pruner_like_scorer(net: dict[str, Tensor], entities: str, pruner: str) -> dict[str, Tensor]:
    """As in a trained network, the spans that are kept for relations are mostly entities."""
    layers = {
        name.replace(f"{entities}.0", f"{pruner}.0"): tensor.clone()
        for name, tensor in net.items()
        if name.startswith(f"{entities}.0.")
    }
    layers[f"{pruner}.1._module.weight"] = net[f"{entities}.1._module.weight"].mean(0, keepdim=True)
    layers[f"{pruner}.1._module.bias"] = torch.zeros(1)
    return layers


def _calibrate(net: dict[str, Tensor], shape: Shape, reports: Sequence[Tensor]) -> None:
    """Sets the biases of the entities' and the relations' scorers in place."""
    ner, relation = _names(shape.namespace)
    widths = net["_endpoint_span_extractor._span_width_embedding.weight"]
    word_count = sum(len(words) for words in reports)
    spans = [_spans(words, widths) for words in reports]
    logits = [_score(net, f"_ner._ner_scorers.{ner}.0._module", f"_ner._ner_scorers.{ner}.1._module", s) for s in spans]
    bias = _bias(torch.cat(logits), ENTITIES_PER_WORD * word_count)
    net[f"_ner._ner_scorers.{ner}.1._module.bias"] = bias
    pruner = f"_relation._mention_pruners.{relation}._scorer"
    scores = []
    for words, vectors, entity in zip(reports, spans, logits, strict=True):
        mention = _score(net, f"{pruner}.0._module", f"{pruner}.1._module", vectors)[:, 0]
        kept = mention.topk(min(len(mention), math.ceil(shape.spans_per_word * len(words)))).indices
        kept = kept[((entity + bias).amax(1) > 0)[kept]]
        first, second = torch.cartesian_prod(kept, kept).T
        a, b = vectors[first], vectors[second]
        pair = _score(
            net,
            f"_relation._relation_feedforwards.{relation}",
            f"_relation._relation_scorers.{relation}",
            torch.cat((a, b, a * b), 1),
        )
        scores.append(pair + (mention[first] + mention[second])[:, None])
    net[f"_relation._relation_scorers.{relation}.bias"] = _bias(torch.cat(scores), RELATIONS_PER_WORD * word_count)


def _spans(words: Tensor, widths: Tensor) -> Tensor:
    """The vectors of all spans of a report: first word, last word, width."""
    places = [(i, i + w) for i in range(len(words)) for w in range(min(len(widths), len(words) - i))]
    first, last = torch.tensor(places).T
    return torch.cat((words[first], words[last], widths[last - first]), 1)


def _score(net: dict[str, Tensor], forward: str, scorer: str, rows: Tensor) -> Tensor:
    for i in range(2):
        name = f"{forward}._linear_layers.{i}"
        rows = F.relu(F.linear(rows, net[f"{name}.weight"], net[f"{name}.bias"]))
    return F.linear(rows, net[f"{scorer}.weight"], net[f"{scorer}.bias"])


def _bias(logits: Tensor, wanted: float) -> Tensor:
    """The biases with which about `wanted` rows have a logit above 0, every column about as often."""
    share = min(1.0, wanted / len(logits))
    bias = -logits.quantile(1 - share / logits.shape[1], dim=0)
    bias = bias - (logits + bias).amax(1).quantile(1 - share)
    return torch.round(bias, decimals=3)


def _config(shape: Shape) -> dict[str, object]:
    transformer = {"type": "pretrained_transformer_mismatched", "model_name": BACKBONE, "max_length": 512}
    return {
        "dataset_reader": {
            "type": "dygie",
            "max_span_width": shape.span_width,
            "token_indexers": {"bert": transformer},
        },
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": transformer}},
            "feature_size": shape.features,
            "feedforward_params": {"num_layers": 2, "hidden_dims": shape.forward, "dropout": 0.4},
            "initializer": {"regexes": [["_span_width_embedding.weight", {"type": "xavier_normal"}]]},
            "module_initializer": {"regexes": [[".*weight", {"type": "xavier_normal"}]]},
            "loss_weights": {"coref": 0, "events": 0, "ner": 0.2, "relation": 1},
            "max_span_width": shape.span_width,
            "modules": {
                "coref": {"coref_prop": 0, "max_antecedents": 100, "spans_per_word": 0.3},
                "events": {
                    "argument_spans_per_word": 0.8,
                    "trigger_spans_per_word": 0.3,
                    "loss_weights": {"arguments": 1, "trigger": 1},
                },
                "ner": {},
                "relation": {"spans_per_word": shape.spans_per_word},
            },
            "target_task": "relation",
        },
        "data_loader": {"sampler": {"type": "random"}},
        "trainer": {},
    }
