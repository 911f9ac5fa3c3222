"""Archives that are damaged or of another kind are refused by name; what RadGraph never runs is not missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_server.errors import RewardSetupError
from reward_server.radcliq.radgraph import RadGraphModel
from reward_server.radcliq.weights import WeightsFolder
from tests.reward_server.radcliq.test_radgraph import edited, load

TEXT = "There is a small left pleural effusion. No pneumothorax, edema, or consolidation."
ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def archive(mini_weights: Path) -> Path:
    return WeightsFolder(mini_weights).radgraph


@pytest.fixture
def load_edited(archive: Path, mini_weights: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Any]], Any]:
    return lambda edit: load(edited(archive, tmp_path / "radgraph", edit), mini_weights)


Load = Callable[[Callable[[Tensors], object]], RadGraphModel]


def test_weights_of_parts_that_are_never_run_may_be_there_or_not(
    load_edited: Load, archive: Path, mini_weights: Path
) -> None:
    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(("_coref.", "_events.")) or ".pooler." in n]:
            del tensors[name]
        tensors[f"{ENCODER}embeddings.position_ids"] = torch.arange(512)[None]

    assert load_edited(edit).annotate([TEXT]) == load(archive, mini_weights).annotate([TEXT])


def test_a_missing_tensor_is_named(load_edited: Load) -> None:
    name = f"{ENCODER}encoder.layer.1.output.dense.bias"
    with pytest.raises(RewardSetupError, match=rf"weights\.th lacks 1 tensors: {name}"):
        load_edited(lambda tensors: tensors.pop(name))


def test_a_tensor_of_another_network_is_named(load_edited: Load) -> None:
    with pytest.raises(RewardSetupError, match=r"1 tensors that RadGraph does not have: _ner\.extra"):
        load_edited(lambda tensors: tensors.update({"_ner.extra": torch.zeros(1)}))


def test_a_tensor_of_another_size_is_named(load_edited: Load) -> None:
    name = "_endpoint_span_extractor._span_width_embedding.weight"
    with pytest.raises(RewardSetupError, match=rf"{name} has the shape \[9, 20\], config.json asks for \[8, 20\]"):
        load_edited(lambda tensors: tensors.update({name: torch.zeros(9, 20)}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "max_span_width"), 9, "max_span_width of the model and of the dataset_reader differ"),
        (("model", "modules", "coref", "coref_prop"), 2, "coreference propagation"),
        (("model", "loss_weights", "ner"), 0, "turn entities or relations off"),
        (("model", "feedforward_params", "hidden_dims"), [24], "1 hidden_dims for 2 layers"),
        (("model", "feedforward_params", "num_layers"), None, "missing or not understood"),
        (("model", "embedder"), {}, "missing or not understood: 'token_embedders'"),
        (("model", "embedder", "token_embedders", "bert", "max_length"), 1024, "max_length 1024; the backbone takes"),
        (("model", "embedder", "token_embedders", "bert", "model_name"), "other/model", "other/model"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    archive: Path, mini_weights: Path, tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    folder = edited(archive, tmp_path / "radgraph", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RewardSetupError, match=message):
        load(folder, mini_weights)


@pytest.mark.parametrize("file", ["config.json", "weights.th", "vocabulary/radgraph__relation_labels.txt"])
def test_a_missing_file_is_named(archive: Path, mini_weights: Path, tmp_path: Path, file: str) -> None:
    folder = edited(archive, tmp_path / "radgraph", lambda tensors: None)
    (folder / file).unlink()
    with pytest.raises(RewardSetupError, match=Path(file).name):
        load(folder, mini_weights)


def test_the_labels_of_another_data_set_are_refused(archive: Path, mini_weights: Path, tmp_path: Path) -> None:
    folder = edited(archive, tmp_path / "radgraph", lambda tensors: None)
    labels = folder / "vocabulary" / "radgraph__ner_labels.txt"
    labels.rename(labels.with_name("echograph__ner_labels.txt"))
    with pytest.raises(RewardSetupError, match="the entity labels of echograph; expected exactly one of radgraph__ner"):
        load(folder, mini_weights)
    labels.with_name("echograph__ner_labels.txt").unlink()
    with pytest.raises(RewardSetupError, match="the entity labels of no data set"):
        load(folder, mini_weights)


def test_labels_without_the_empty_one_are_refused(archive: Path, mini_weights: Path, tmp_path: Path) -> None:
    folder = edited(archive, tmp_path / "radgraph", lambda tensors: None)
    labels = folder / "vocabulary" / "radgraph__ner_labels.txt"
    labels.write_text(labels.read_text().lstrip("\n"))
    with pytest.raises(RewardSetupError, match="first label must be empty"):
        load(folder, mini_weights)
