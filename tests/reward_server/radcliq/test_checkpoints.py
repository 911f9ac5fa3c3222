"""The random-weight checkpoints and the made-up reports that tests and benchmarks use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import main
from benchmarks.reports import Pair, nasty_pairs, other_hypotheses, report_pairs, varied_pairs
from reward_server.radcliq.chexbert import CheXbert
from reward_server.radcliq.radgraph.archive import read_config
from reward_server.radcliq.radgraph.model import RadGraphModel
from reward_server.radcliq.weights import WeightsFolder


def test_the_help_names_the_command_and_explains_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["checkpoints.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: python -m benchmarks.checkpoints")
    for words in ("2.6 GB", "weights folder that is written", "of the random weights (default: 0)", "vocab.bpe"):
        assert words in shown


def test_the_same_seed_gives_the_same_reports() -> None:
    assert report_pairs(5, seed=1) == report_pairs(5, seed=1) != report_pairs(5, seed=2)
    assert varied_pairs(5, seed=1) == varied_pairs(5, seed=1) != varied_pairs(5, seed=2)
    assert nasty_pairs() == nasty_pairs()


def test_reports_have_the_length_of_real_ones() -> None:
    pairs = report_pairs(200)
    words = [sum(len(pair[side].split()) for pair in pairs) / len(pairs) for side in (0, 1)]
    assert 50 < words[0] < 62
    assert 40 < words[1] < words[0]


def test_other_hypotheses_keep_the_references(pairs: list[Pair]) -> None:
    others = other_hypotheses(pairs)
    assert [reference for reference, _ in others] == [reference for reference, _ in pairs]
    assert all(new[1] not in old for old, new in zip(pairs, others, strict=True))


def test_graphs_of_random_archives_have_realistic_sizes_and_vary(mini_weights: Path, pairs: list[Pair]) -> None:
    for name in ("radgraph", "radgraph-xl"):
        folder = WeightsFolder(mini_weights, name)
        model = RadGraphModel.load(folder.radgraph, folder.backbone, torch.device("cpu"), torch.float32)
        graphs = model.annotate([reference for reference, _ in pairs])
        words = sum(len(graph.tokens) for graph in graphs)
        entities = [entity for graph in graphs for entity in graph.entities]
        relations = [relation for entity in entities for relation in entity.relations]
        assert 0.2 < len(entities) / words < 0.55, name
        assert 0.1 < len(relations) / words < 0.6, name
        labels = Counter(entity.label for entity in entities)
        assert labels.keys() == set(read_config(folder.radgraph).entity_labels)
        assert {kind for kind, _ in relations} == {"modify", "located_at", "suggestive_of"}


def test_labels_and_embeddings_of_the_random_chexbert_vary(mini_weights: Path, pairs: list[Pair]) -> None:
    folder = WeightsFolder(mini_weights)
    found = CheXbert(folder.chexbert, folder.bert, "cpu", torch.float32).label([reference for reference, _ in pairs])
    for condition in range(13):
        assert len({labels.classes[condition] for labels in found}) >= 3
    cosines = torch.corrcoef(torch.stack([labels.embedding for labels in found]))
    assert cosines.min() < 0.7
