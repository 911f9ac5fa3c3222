"""RadGraph's graphs are the package's, and those of a report alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.reports import Pair, report
from reward_server.backends.reference import RadGraphPackage
from reward_server.radcliq.radgraph import Graph, RadGraphModel, to_json
from reward_server.radcliq.weights import WeightsFolder, load_tensors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(folder: Path, weights: Path) -> RadGraphModel:
    return RadGraphModel.load(folder, WeightsFolder(weights).backbone, CPU, torch.float32)


def edited(folder: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an archive whose tensors `edit` has changed."""
    (target / "vocabulary").mkdir(parents=True)
    for file in (folder / "config.json", *(folder / "vocabulary").iterdir()):
        (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_tensors(folder / "weights.th").items()}
    edit(tensors)
    torch.save(tensors, target / "weights.th")
    return target


def highest_memory() -> int:
    """Of this process, in kB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


@pytest.fixture(scope="module")
def model(mini_weights: Path) -> RadGraphModel:
    return load(WeightsFolder(mini_weights).radgraph, mini_weights)


@pytest.fixture(scope="module")
def texts(pairs: list[Pair], nasty_pairs: list[Pair]) -> list[str]:
    """All reports but those on which the package needs gigabytes, and some that no report looks like."""
    draw = random.Random(4)
    letters = "ab Z9 ./:,-;!?()%'\"\\n \n\té心🫁_`\u0301\u200b\ufeff\x1c"
    noise = ["".join(draw.choice(letters) for _ in range(draw.randint(1, 80))) for _ in range(20)]
    odd = ["\u200b", "\u200b \ufeff", "a \u200b b", "r/o./. x /. /? edema", "#" * 1200]
    found = [text for pair in (*nasty_pairs, *pairs[:24]) for text in pair]
    return [text for text in dict.fromkeys([*found, *noise, *odd]) if len(text.split()) < 700]


@pytest.fixture(scope="module")
def graphs(model: RadGraphModel, texts: list[str]) -> list[Graph]:
    return model.annotate(texts)


def test_the_graphs_are_the_packages(mini_weights: Path, texts: list[str], graphs: list[Graph]) -> None:
    folder = WeightsFolder(mini_weights)
    package = RadGraphPackage(folder.radgraph, folder.backbone, CPU)
    for text, graph in zip(texts, graphs, strict=True):
        assert to_json(graph) == package(text), text


def test_the_reports_reach_every_part_of_the_network(graphs: list[Graph]) -> None:
    entities = [entity for graph in graphs for entity in graph.entities]
    assert len({entity.label for entity in entities}) == 4
    assert len({kind for entity in entities for kind, _ in entity.relations}) == 3
    assert len({entity.end - entity.start for entity in entities}) == 8
    assert max(len(graph.tokens) for graph in graphs) > 510  # more than a window


def test_physionets_naming_and_an_archive_file_give_the_same_graphs(
    mini_weights: Path, tmp_path: Path, texts: list[str], graphs: list[Graph]
) -> None:
    assert load(mini_weights / "physionet" / "radgraph", mini_weights).annotate(texts) == graphs
    for part in ("radgraph.tar.gz", "microsoft"):
        (tmp_path / part).symlink_to(mini_weights / part)
    assert load(WeightsFolder(tmp_path).radgraph, tmp_path).annotate(texts) == graphs


def test_the_package_gives_the_same_graphs_in_physionets_naming(
    mini_weights: Path, texts: list[str], graphs: list[Graph]
) -> None:
    package = RadGraphPackage(mini_weights / "physionet" / "radgraph", WeightsFolder(mini_weights).backbone, CPU)
    for text, graph in list(zip(texts, graphs, strict=True))[::5]:
        assert to_json(graph) == package(text), text


def test_the_graphs_of_radgraph_xl_are_the_packages(mini_weights: Path, texts: list[str]) -> None:
    folder = WeightsFolder(mini_weights, "radgraph-xl")
    package = RadGraphPackage(folder.radgraph, folder.backbone, CPU)
    for text, graph in zip(texts, load(folder.radgraph, mini_weights).annotate(texts), strict=True):
        assert to_json(graph) == package(text), text


def test_a_graph_is_the_same_alone_and_in_any_batch(
    model: RadGraphModel, texts: list[str], graphs: list[Graph]
) -> None:
    assert [model.annotate([text])[0] for text in texts] == graphs
    order = random.Random(5).sample(range(len(texts)), len(texts))
    for size in (2, 7, len(texts)):
        found = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            found.update(zip(part, model.annotate([texts[i] for i in part]), strict=True))
        assert [found[i] for i in range(len(texts))] == graphs


def test_a_report_without_words_has_no_entities(model: RadGraphModel) -> None:
    assert model.annotate([]) == []
    assert model.annotate(["", " \n\t", "No edema."])[:2] == [Graph(), Graph()]


def test_a_report_of_2000_words_that_are_all_entities_takes_bounded_memory(mini_weights: Path, tmp_path: Path) -> None:
    def more_entities(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "_ner_scorers" in name and name.endswith("1._module.bias"):
                tensor += 100

    model = load(edited(WeightsFolder(mini_weights).radgraph, tmp_path / "radgraph", more_entities), mini_weights)
    text = report(random.Random(6), 2000)
    model.annotate([report(random.Random(7), 300)])
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory use counts from now
    before, started = highest_memory(), time.monotonic()
    [graph] = model.annotate([text])
    assert len(graph.entities) == 8 * len(graph.tokens) - 28  # every span
    assert sum(len(entity.relations) for entity in graph.entities) > 1000
    # The package builds more than a million pairs of three spans each: 2.5 GB here, 27 GB in full size.
    assert highest_memory() - before < 400_000
    assert time.monotonic() - started < 60
