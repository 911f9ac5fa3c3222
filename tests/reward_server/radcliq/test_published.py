"""The `published` backend gives RadCliQ's components as the packages do, whatever stands in the batch."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from radgraph.rewards import compute_reward

from reward_server.backends import create_scorer
from reward_server.backends.published import COMPONENTS
from reward_server.errors import RewardSetupError
from reward_server.radcliq.chexbert import CheXbert
from reward_server.radcliq.radgraph import to_json
from reward_server.radcliq.radgraph.model import RadGraphModel
from reward_server.radcliq.weights import WeightsFolder
from reward_server.scorer import Pair, Scorer, ScorerOptions

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def published(mini_weights: Path) -> Scorer:
    return create_scorer(ScorerOptions("published", weights=str(mini_weights)))


@pytest.fixture(scope="module")
def scores(published: Scorer, pairs: list[Pair], nasty_pairs: list[Pair]) -> dict[Pair, dict[str, float]]:
    asked = [*pairs, *nasty_pairs]
    return dict(zip(asked, published.score(asked), strict=True))


def test_every_component_is_the_packages(
    mini_weights: Path, scores: dict[Pair, dict[str, float]], pairs: list[Pair], nasty_pairs: list[Pair]
) -> None:
    reference = create_scorer(ScorerOptions("reference", weights=str(mini_weights)))
    # The packages take minutes and gigabytes for very long reports.
    asked = [pair for pair in nasty_pairs if max(map(len, pair)) < 4000] + pairs[:12]
    assert any(len(pair[0].split()) > 450 for pair in asked)
    for pair, expected in zip(asked, reference.score(asked), strict=True):
        for name, value in expected.items():
            assert scores[pair][name] == pytest.approx(value, abs=TOLERANCE), (name, pair)


def test_the_three_radgraph_rewards_are_those_of_the_package(
    mini_weights: Path, scores: dict[Pair, dict[str, float]]
) -> None:
    folder = WeightsFolder(mini_weights, "radgraph")
    model = RadGraphModel.load(folder.radgraph, folder.backbone, torch.device("cpu"), torch.float32)
    texts = sorted({text for pair in scores for text in pair})
    graphs = dict(zip(texts, map(to_json, model.annotate(texts)), strict=True))
    for (reference, hypothesis), score in scores.items():
        found = tuple(score[f"radgraph_{level}"] for level in ("simple", "partial", "complete"))
        assert found == pytest.approx(compute_reward(graphs[hypothesis], graphs[reference], "all"))


def test_labels_are_chexberts_classes_alone_and_in_any_batch(
    mini_weights: Path, scores: dict[Pair, dict[str, float]]
) -> None:
    texts = sorted({text for pair in scores for text in pair})
    folder = WeightsFolder(mini_weights, "radgraph")
    chexbert = CheXbert(folder.chexbert, folder.bert, "cpu", torch.float32)
    expected = [read.classes for read in chexbert.label(texts)]
    scorer, alone = (create_scorer(ScorerOptions("published", weights=str(mini_weights))) for _ in range(2))
    assert scorer.label([*texts, *texts]) == expected * 2
    assert [alone.label([text])[0] for text in texts[:25]] == expected[:25]
    assert scorer.label([]) == []
    assert len(set(expected)) > 5
    assert {value for classes in expected for value in classes} == {0, 1, 2, 3}


def test_a_text_is_labelled_once_and_not_at_all_if_it_was_scored(mini_weights: Path, pairs: list[Pair]) -> None:
    scorer = create_scorer(ScorerOptions("published", weights=str(mini_weights)))
    scorer.score([pairs[0]])
    read = scorer.statistics()["cache_misses"]
    scorer.label([*pairs[0], *pairs[0]])
    assert scorer.statistics()["cache_misses"] == read
    for _ in range(2):
        scorer.label(["No acute findings.", "No acute findings."])
        assert scorer.statistics()["cache_misses"] == read + 1
    assert scorer.statistics()["radgraph_seconds"] > 0


def test_the_scores_vary_over_the_pairs(scores: dict[Pair, dict[str, float]]) -> None:
    graphs = ("radgraph", "radgraph_relation", "radgraph_simple", "radgraph_partial", "radgraph_complete")
    for name in (*graphs, "bertscore", "semb", "bleu2", "radcliq_v1", "positive_f1"):
        assert len({round(score[name], 4) for score in scores.values()}) > 5, name


def test_a_pair_has_the_same_bits_alone_in_any_batch_and_from_another_replica(
    mini_weights: Path, scores: dict[Pair, dict[str, float]]
) -> None:
    another = create_scorer(ScorerOptions("published", weights=str(mini_weights)))
    order = random.Random(2).sample(list(scores), len(scores))
    assert another.score(order) == [scores[pair] for pair in order]
    alone = create_scorer(ScorerOptions("published", weights=str(mini_weights)))
    for pair in order[:25]:
        assert alone.score([pair]) == [scores[pair]]


def test_blank_text_has_its_defined_scores(published: Scorer) -> None:
    """docs/reward_server.md: no graph, raw BERTScore 0, the embedding of `[CLS] [SEP]`, no BLEU."""
    blanks = ["", " ", "\n\t "]
    for blank in blanks:
        (score,) = published.score([("No acute cardiopulmonary process.", blank)])
        assert tuple(score) == COMPONENTS
        assert all(math.isfinite(value) for value in score.values())
        assert score["radgraph"] == score["bleu2"] == 0
        assert score["bertscore"] == pytest.approx(-5.55015612, abs=1e-6)
        assert score["radcliq_v1"] > 10
    (both,) = published.score([("", " ")])
    assert both["semb"] == pytest.approx(1)
    assert both["radgraph"] == 0


def test_a_copy_is_worth_all_that_the_definition_gives(published: Scorer, pairs: list[Pair]) -> None:
    for reference, _ in pairs[:10]:
        (score,) = published.score([(reference, reference)])
        assert score["bertscore"] == pytest.approx(1, abs=1e-5)
        assert score["semb"] == pytest.approx(1, abs=1e-9)
        # A report without relations in its graph gets half of it only: an empty set against an empty set is 0.
        assert score["radgraph"] in (0, 0.5, 1)


def test_a_report_is_read_once_while_the_cache_holds_it(mini_weights: Path, pairs: list[Pair]) -> None:
    scorer = create_scorer(ScorerOptions("published", weights=str(mini_weights)))
    reference = pairs[0][0]
    scorer.score([(reference, hypothesis) for _, hypothesis in pairs[:3]])
    scorer.score([(reference, hypothesis) for _, hypothesis in pairs[:3]])
    counters = scorer.statistics()  # type: ignore[attr-defined]
    assert counters["cache_misses"] == len({reference, *(hypothesis for _, hypothesis in pairs[:3])})
    assert counters["cache_hits"] == counters["cache_misses"]
    assert counters["chexbert_seconds"] > 0


def test_the_description_names_the_definition_and_every_checkpoint(published: Scorer, mini_weights: Path) -> None:
    about = published.description
    assert (about.backend, about.definition, about.components) == ("published", "radcliq-v1", COMPONENTS)
    assert len({model.sha256 for model in about.models}) == len(about.models) >= 4
    assert all(len(model.sha256) == 64 for model in about.models)


def test_another_radgraph_is_another_definition(mini_weights: Path) -> None:
    scorer = create_scorer(ScorerOptions("published", weights=str(mini_weights), radgraph="radgraph-xl"))
    assert scorer.description.definition == "radcliq-v1+radgraph-xl"


def test_idf_comes_from_the_corpus_and_not_from_the_batch(
    mini_weights: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(reference.replace("\n", " ") for reference, _ in pairs[:40]))
    scorer = create_scorer(ScorerOptions("published", weights=str(mini_weights), idf=str(corpus)))
    alone = [scorer.score([pair])[0]["bertscore"] for pair in pairs[:5]]
    assert alone == [score["bertscore"] for score in scorer.score(pairs[:20])[:5]]
    plain = create_scorer(ScorerOptions("published", weights=str(mini_weights))).score(pairs[:5])
    assert alone != [score["bertscore"] for score in plain]
    assert scorer.description.definition == "radcliq-v1+idf"
    copy = scorer.score([(pairs[0][0], pairs[0][0])])
    assert copy[0]["bertscore"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ScorerOptions("published"), "--weights"),
        (ScorerOptions("published", weights="/nowhere"), "/nowhere"),
        (ScorerOptions("published", weights=".", device="tpu0"), "--device tpu0"),
        (ScorerOptions("published", weights=".", dtype="int8"), "--dtype int8"),
        (ScorerOptions("published", weights=".", dtype="bfloat16"), "float32 only"),
        (ScorerOptions("publishd"), "publishd"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: ScorerOptions, message: str) -> None:
    with pytest.raises(RewardSetupError, match=message):
        create_scorer(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_never_a_slow_cpu() -> None:
    with pytest.raises(RewardSetupError, match="sees no GPU"):
        create_scorer(ScorerOptions("published", weights=".", device="cuda"))


@pytest.mark.parametrize("corpus", ["", "one report only\n"])
def test_an_idf_corpus_without_reports_is_refused(mini_weights: Path, tmp_path: Path, corpus: str) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text(corpus)
    with pytest.raises(RewardSetupError, match=r"corpus\.txt"):
        create_scorer(ScorerOptions("published", weights=str(mini_weights), idf=str(file)))
