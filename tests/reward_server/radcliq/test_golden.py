"""`published` against what `CXR-Report-Metric` itself gave, where the kit with those values is at hand.

The kit (random weights in the published formats, and the values) is named by LMRRG_TEST_PARITY; it is not part of this
repository. Without it test_published.py compares with the packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_server.backends.published import PublishedScorer
from reward_server.radcliq.radgraph import RadGraphModel
from reward_server.radcliq.weights import WeightsFolder
from reward_server.scorer import ScorerOptions

KIT = os.environ.get("LMRRG_TEST_PARITY")
COMPONENTS = {
    "bleu": "bleu2",
    "bertscore": "bertscore",
    "semb": "semb",
    "radgraph": "radgraph",
    "ent_f1": "radgraph_entity",
    "rel_f1": "radgraph_relation",
    "radcliq_v0": "radcliq_v0",
    "radcliq_v1": "radcliq_v1",
}

pytestmark = pytest.mark.skipif(KIT is None, reason="LMRRG_TEST_PARITY does not name the kit")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    command = [sys.executable, f"{KIT}/build_checkpoints.py", "--size", "mini", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{KIT}/golden_mini.jsonl").read_text().splitlines()]


def test_every_component_is_the_canonical_one(weights: Path, rows: list[dict[str, Any]]) -> None:
    scorer = PublishedScorer(ScorerOptions("published", weights=str(weights)))
    scores = scorer.score([(row["ref"], row["hyp"]) for row in rows])
    compared = 0
    for row, score in zip(rows, scores, strict=True):
        for theirs, ours in COMPONENTS.items():
            if row["cxrm"][theirs] is not None:  # null: it failed on this pair
                assert score[ours] == pytest.approx(row["cxrm"][theirs], abs=1e-5), (row["i"], ours)
                compared += 1
    assert compared > 780


@pytest.mark.parametrize("archive", ["radgraph.tar.gz", "physionet/radgraph"])
def test_every_graph_is_the_canonical_one(weights: Path, rows: list[dict[str, Any]], archive: str) -> None:
    folder = WeightsFolder(weights)
    place = folder.radgraph if archive.endswith(".gz") else weights / archive
    model = RadGraphModel.load(place, folder.backbone, torch.device("cpu"), torch.float32)
    for side in ("ref", "hyp"):
        for row, graph in zip(rows, model.annotate([row[side] for row in rows]), strict=True):
            expected = [(s, e, label, _named(arcs)) for _, s, e, label, arcs in row[f"graph_{side}"]]
            found = [(e.start, e.end, e.label, _named((k, i + 1) for k, i in e.relations)) for e in graph.entities]
            assert found == expected, (row["i"], side)


def _named(relations: Iterable[tuple[str, str | int]]) -> set[tuple[str, int]]:
    """Relations by type and number of the target."""
    return {(kind, int(target)) for kind, target in relations}
