"""The `reference` backend runs the packages, with the components of `published`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from bert_score.utils import get_tokenizer

from benchmarks.reports import Pair
from reward_server.backends import create_scorer
from reward_server.backends.published import COMPONENTS
from reward_server.errors import RewardSetupError
from reward_server.radcliq.weights import sha256
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.spec import RADCLIQ_V0, RADCLIQ_V1

TEXT = "Small left pleural effusion. No pneumothorax."


@pytest.fixture(scope="module")
def reference(mini_weights: Path) -> Scorer:
    return create_scorer(ScorerOptions("reference", weights=str(mini_weights)))


def test_it_gives_the_components_that_it_describes(reference: Scorer, pairs: list[Pair]) -> None:
    assert reference.description.components == COMPONENTS
    for score in reference.score(pairs[:4]):
        assert tuple(score) == COMPONENTS
        assert all(math.isfinite(value) for value in score.values())


def test_the_composites_are_the_formulas_of_the_components(reference: Scorer) -> None:
    [score] = reference.score([(TEXT, "Moderate left effusion.")])
    features = [score[name] for name in ("radgraph", "bertscore", "semb", "bleu2")]
    assert score["radgraph"] == (score["radgraph_entity"] + score["radgraph_relation"]) / 2
    assert score["radcliq_v1"] == RADCLIQ_V1(*features)
    assert score["radcliq_v0"] == RADCLIQ_V0(*features)


def test_it_labels_as_published_does(mini_weights: Path, reference: Scorer, pairs: list[Pair]) -> None:
    published = create_scorer(ScorerOptions("published", weights=str(mini_weights)))
    texts = [*(hypothesis for _, hypothesis in pairs[:12]), ""]
    assert reference.label(texts) == published.label(texts)


def test_blank_reports_have_no_graph_and_no_matches(reference: Scorer) -> None:
    for score in reference.score([("", ""), (TEXT, ""), (" \n", TEXT)]):
        assert score["radgraph"] == score["bleu2"] == 0
        assert score["bertscore"] == pytest.approx(-5.55, abs=1e-3)


def test_a_copy_has_a_bertscore_and_a_similarity_of_1(reference: Scorer) -> None:
    [score] = reference.score([(TEXT, TEXT)])
    assert score["bertscore"] == pytest.approx(1, abs=1e-5)
    assert score["semb"] == pytest.approx(1, abs=1e-5)


def test_a_reports_first_word_is_cut_as_within_the_text(mini_weights: Path, reference: Scorer) -> None:
    """Without the fix bert-score's own tokenizer gives the first word other pieces, and so another score."""
    fixed = reference._bertscore._tokenizer  # type: ignore[attr-defined]
    broken = get_tokenizer(str(mini_weights / "distilroberta-base"))
    alone, within = fixed.encode("effusion")[1:-1], fixed.encode("No effusion")[1:-1]
    assert within[-len(alone) :] == alone
    assert broken.encode("effusion")[1:-1] != alone


def test_idf_comes_from_the_corpus_file(mini_weights: Path, reference: Scorer, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("No pneumothorax.\n\nNo effusion.\nNo edema.\n")
    weighed = create_scorer(ScorerOptions("reference", weights=str(mini_weights), idf=str(corpus)))
    pair = (TEXT, "No left effusion.")
    [plain], [score] = reference.score([pair]), weighed.score([pair])
    assert weighed.description.definition == "radcliq-v1+idf"
    assert score["bertscore"] != plain["bertscore"]
    assert score["radgraph"] == plain["radgraph"]


def test_it_leaves_the_weights_folder_as_it_is(mini_weights: Path, reference: Scorer) -> None:
    files = {model.name: model.sha256 for model in reference.description.models}
    create_scorer(ScorerOptions("reference", weights=str(mini_weights)))
    assert sha256(mini_weights / "radgraph") == files["radgraph"]
    assert not list(mini_weights.rglob(".lock"))


def test_it_needs_weights_and_is_float32_only(mini_weights: Path) -> None:
    with pytest.raises(RewardSetupError, match="needs a folder of weights: --weights DIR"):
        create_scorer(ScorerOptions("reference"))
    with pytest.raises(RewardSetupError, match="float32 only"):
        create_scorer(ScorerOptions("reference", weights=str(mini_weights), dtype="bfloat16"))
