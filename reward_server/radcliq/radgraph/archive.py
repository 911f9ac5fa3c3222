"""A published RadGraph archive: DyGIE++'s `config.json`, `weights.th` (or `model.safetensors`) and `vocabulary/`.

Contract: every size is read from `config.json`, the labels from the vocabulary; the weights of modules that RadGraph
never runs (coreference, events, BERT's pooler) are dropped. Any other tensor too many or too few, and any setting that
this inference does not have, is a RewardSetupError that names the file: no archive is run half understood.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reward_server.errors import RewardSetupError
from reward_server.radcliq.radgraph.tokens import SPLITTERS
from reward_server.radcliq.weights import load_tensors, weights_file

ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
WIDTHS = "_endpoint_span_extractor._span_width_embedding.weight"
_UNUSED = ("_coref.", "_events.", f"{ENCODER}pooler.", f"{ENCODER}embeddings.position_ids")
_ENCODER_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_ENCODER_LAYER = (
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


@dataclass(frozen=True)
class ArchiveConfig:
    """What `config.json` and the vocabulary say. `entity_labels`: without the empty label of a span that is none."""

    model_name: str  # the backbone's name on the hub
    window: int  # word pieces that the transformer sees at once, [CLS] and [SEP] included
    span_width: int  # words of the longest span
    feature_size: int
    hidden_sizes: tuple[int, ...]  # of every feed-forward network
    spans_per_word: float  # share of spans, by word, that may take part in relations
    namespace: str
    entity_labels: tuple[str, ...]
    relation_labels: tuple[str, ...]


@dataclass(frozen=True)
class Archive:
    """The archive with its tensors under their published names, those that are not needed left out."""

    config: ArchiveConfig
    tensors: Mapping[str, Tensor]
    file: Path


def read_config(folder: Path) -> ArchiveConfig:
    """Reads `config.json` and the vocabulary of an unpacked archive; RewardSetupError names what is wrong."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        model, reader = config["model"], config["dataset_reader"]
        embedder = model["embedder"]["token_embedders"]["bert"]
        forward, relation = model["feedforward_params"], model["modules"]["relation"]
        layers, hidden = int(forward["num_layers"]), forward["hidden_dims"]
        coreference, losses = model["modules"]["coref"], model["loss_weights"]
        window, span_width = int(embedder["max_length"]), int(model["max_span_width"])
        namespace = _namespace(folder / "vocabulary")
        found = ArchiveConfig(
            model_name=str(embedder["model_name"]),
            window=window,
            span_width=span_width,
            feature_size=int(model["feature_size"]),
            hidden_sizes=tuple(int(size) for size in (hidden if isinstance(hidden, list) else [hidden] * layers)),
            spans_per_word=float(relation["spans_per_word"]),
            namespace=namespace,
            entity_labels=_entity_labels(folder / "vocabulary" / f"{namespace}__ner_labels.txt"),
            relation_labels=_lines(folder / "vocabulary" / f"{namespace}__relation_labels.txt"),
        )
        same_reader = reader["max_span_width"] == span_width
        propagates = coreference.get("coref_prop", 0) > 0
        finds = losses["ner"] > 0 and losses["relation"] > 0
    except FileNotFoundError as error:
        raise RewardSetupError(f"the RadGraph archive {folder} has no file {error.filename}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RewardSetupError(f"{file}: missing or not understood: {error}; expected DyGIE++'s config.json") from error
    if not same_reader:
        raise RewardSetupError(f"{file}: max_span_width of the model and of the dataset_reader differ")
    if propagates:
        raise RewardSetupError(f"{file}: coreference propagation (coref_prop) is not supported; RadGraph has none")
    if not finds:
        raise RewardSetupError(f"{file}: loss_weights turn entities or relations off")
    if len(found.hidden_sizes) != layers:
        raise RewardSetupError(f"{file}: {len(found.hidden_sizes)} hidden_dims for {layers} layers")
    return found


def read_archive(folder: Path, config: ArchiveConfig, encoder_layers: int) -> Archive:
    """Reads the weights; the backbone has so many layers. RewardSetupError names the tensors that do not belong."""
    file = weights_file(folder)
    tensors = {name: tensor for name, tensor in load_tensors(file).items() if not name.startswith(_UNUSED)}
    expected = set(_expected(config, encoder_layers))
    if missing := sorted(expected - tensors.keys()):
        raise RewardSetupError(f"{file} lacks {len(missing)} tensors: {_some(missing)}")
    if unknown := sorted(tensors.keys() - expected):
        raise RewardSetupError(f"{file} has {len(unknown)} tensors that RadGraph does not have: {_some(unknown)}")
    return Archive(config, tensors, file)


def entity_names(config: ArchiveConfig) -> tuple[str, str]:
    """Where the feed-forward network and the last layer of the entity scorer are among the tensors."""
    name = f"_ner._ner_scorers.{config.namespace}__ner_labels."
    return f"{name}0._module.", f"{name}1._module."


def mention_names(config: ArchiveConfig) -> tuple[str, str]:
    """The same for the scorer that says which spans may take part in relations."""
    name = f"_relation._mention_pruners.{config.namespace}__relation_labels._scorer."
    return f"{name}0._module.", f"{name}1._module."


def relation_names(config: ArchiveConfig) -> tuple[str, str]:
    """The same for the scorer of relations."""
    labels = f"{config.namespace}__relation_labels."
    return f"_relation._relation_feedforwards.{labels}", f"_relation._relation_scorers.{labels}"


def _expected(config: ArchiveConfig, encoder_layers: int) -> Iterable[str]:
    yield WIDTHS
    yield from (f"{ENCODER}embeddings.{table}.weight" for table in _ENCODER_TABLES)
    modules = [f"{ENCODER}embeddings.LayerNorm."]
    modules += [f"{ENCODER}encoder.layer.{i}.{part}." for i in range(encoder_layers) for part in _ENCODER_LAYER]
    for forward, scorer in (entity_names(config), mention_names(config), relation_names(config)):
        modules += [f"{forward}_linear_layers.{i}." for i in range(len(config.hidden_sizes))]
        modules.append(scorer)
    for module in modules:
        yield f"{module}weight"
        yield f"{module}bias"


def _namespace(vocabulary: Path) -> str:
    """The data set in whose name the labels are kept, such as `radgraph` of `radgraph__ner_labels.txt`."""
    found = sorted(path.name.removesuffix("__ner_labels.txt") for path in vocabulary.glob("*__ner_labels.txt"))
    if len(found) != 1 or found[0] not in SPLITTERS:
        raise RewardSetupError(
            f"{vocabulary} has the entity labels of {', '.join(found) or 'no data set'}; expected exactly one of"
            f" {', '.join(f'{name}__ner_labels.txt' for name in SPLITTERS)}"
        )
    return found[0]


def _entity_labels(file: Path) -> tuple[str, ...]:
    labels = _lines(file)
    if not labels or labels[0]:
        raise RewardSetupError(f"{file}: the first label must be empty: that of a span that is no entity")
    return labels[1:]


def _lines(file: Path) -> tuple[str, ...]:
    lines = file.read_text(encoding="utf-8").split("\n")
    return tuple(line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
