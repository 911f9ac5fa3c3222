"""A pair's scores are the same bits wherever it stands; the encoder is the published one."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from reward_server.backends import create_scorer
from reward_server.scorer import Scorer, ScorerOptions
from reward_server.text.encoder import SentenceEncoder, model_folder
from rrg.data.formats.openi import OpeniRecord


def test_scores_are_the_same_bits_alone_in_any_batch_and_in_any_order(
    scorer: Scorer, records: list[OpeniRecord]
) -> None:
    texts = [record.sections["findings"] for record in records[::40]]
    pairs = [*zip(texts, texts[1:] + texts[:1], strict=True), ("", "x"), ("No effusion.", "")]
    batch = create_scorer(ScorerOptions("embedded")).score(pairs)
    order = random.Random(1).sample(range(len(pairs)), len(pairs))
    again = create_scorer(ScorerOptions("embedded")).score([pairs[i] for i in order])
    assert [again[order.index(i)] for i in range(len(pairs))] == batch
    alone = create_scorer(ScorerOptions("embedded"))
    assert [alone.score([pair])[0] for pair in pairs] == batch
    assert scorer.score(pairs) == batch


def test_a_full_cache_changes_no_bit(monkeypatch: pytest.MonkeyPatch, records: list[OpeniRecord]) -> None:
    texts = [record.sections["findings"] for record in records[:12]]
    pairs = [(a, b) for a in texts[:3] for b in texts]
    expected = create_scorer(ScorerOptions("embedded")).score(pairs)
    monkeypatch.setattr("reward_server.backends.embedded._SENTENCE_CACHE", 4)
    monkeypatch.setattr("reward_server.backends.embedded._REPORT_CACHE", 2)
    small = create_scorer(ScorerOptions("embedded"))
    assert small.score(pairs) == expected
    assert [small.score([pair])[0] for pair in pairs] == expected


def test_a_sentence_is_encoded_to_the_same_bits_beside_any_other() -> None:
    encoder = SentenceEncoder()
    sentence = "There is a small left pleural effusion"
    alone = encoder.encode([sentence])[0].vectors
    for others in (["No"], ["The lungs are clear"] * 9, ["heart " * 700], [f"word{i} " * i for i in range(40)]):
        for place in {0, len(others) // 2, len(others)}:
            mixed = encoder.encode([*others[:place], sentence, *others[place:]])
            assert torch.equal(mixed[place].vectors, alone)


def test_the_encoder_gives_the_hidden_states_of_transformers() -> None:
    folder = model_folder()
    sentence = "Heart size is within normal limits, without 1.5 cm nodules"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    with torch.inference_mode():
        hidden = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states[5][0]
    expected = torch.nn.functional.normalize(hidden, dim=-1)
    assert torch.allclose(SentenceEncoder().encode([sentence])[0].vectors, expected, atol=2e-6)


def test_a_report_of_a_thousand_words_is_scored_in_full(scorer: Scorer) -> None:
    long = "opacity " * 1200
    assert scorer.score([(long, long)])[0]["bertscore"] == pytest.approx(1.0)
    assert scorer.score([(long, long + "pneumothorax")])[0]["graph_f1"] < 1
