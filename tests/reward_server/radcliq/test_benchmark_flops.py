"""The benchmark's count of floating-point operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.flops import Encoder, FlopCounter
from benchmarks.reports import Pair

SIZES = Encoder(layers=3, hidden=32, wide=80)


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_an_encoders_count_is_torchs_own(length: int) -> None:
    config = BertConfig(
        vocab_size=50,
        num_hidden_layers=SIZES.layers,
        hidden_size=SIZES.hidden,
        intermediate_size=SIZES.wide,
        num_attention_heads=4,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    assert SIZES.flops(length) == counter.get_total_flops()


def test_the_first_tokens_last_state_alone_costs_less() -> None:
    length, hidden = 10, SIZES.hidden
    saved_rows = length - 1
    saved = 4 * saved_rows * (hidden**2 + length * hidden + hidden * SIZES.wide)
    assert SIZES.flops(length) - SIZES.flops(length, first_only=True) == saved


def test_a_count_is_the_sum_over_reports(mini_weights: Path, pairs: list[Pair]) -> None:
    counter = FlopCounter(mini_weights)
    texts = [reference for reference, _ in pairs[:4]]
    assert counter.count(texts) == sum(counter.count([text]) for text in texts) > 0


def test_a_long_report_is_cut_for_two_models_and_windowed_for_the_third(mini_weights: Path) -> None:
    counter = FlopCounter(mini_weights)
    long, longer = (counter.count(["effusion " * words]) for words in (1020, 2040))
    cut = Encoder(2, 64, 128).flops(512, first_only=True) + Encoder(5, 64, 128).flops(512)
    windows = long - cut  # "effusion" is whole or two pieces
    assert windows % Encoder(2, 64, 128).flops(512) == 0
    assert longer - cut == 2 * windows
