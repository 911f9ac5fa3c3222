"""The packed encoder is transformers' BERT and RoBERTa, whatever stands in the batch."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from reward_server.errors import RewardSetupError
from reward_server.radcliq.encoder import EncoderConfig, PackedEncoder

SIZES = {
    "vocab_size": 200,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 130,
}


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "bert":
        return BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    return RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False).eval()


def _packed(model: PreTrainedModel, **options: int) -> PackedEncoder:
    return PackedEncoder.from_tensors(
        model.state_dict(), EncoderConfig.from_json(model.config.to_dict(), "config.json"), **options
    )


def _sequences(number: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(2, 200) for _ in range(draw.randint(1, 128))] for _ in range(number)]


@torch.inference_mode()
def _states(model: PreTrainedModel, ids: list[int]) -> Tensor:
    hidden: Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_token_has_the_state_that_transformers_computes(kind: str) -> None:
    model = _model(kind)
    sequences = _sequences(20)
    for ids, state in zip(sequences, _packed(model).encode(sequences), strict=True):
        assert torch.allclose(state, _states(model, ids), atol=2e-6)


def test_the_first_token_alone_has_the_state_that_it_has_among_all() -> None:
    encoder, sequences = _packed(_model("bert")), _sequences(20)
    alone = encoder.encode(sequences, first_only=True)
    for first, state in zip(alone, encoder.encode(sequences), strict=True):
        assert first.shape == (1, 48)
        assert torch.allclose(first, state[:1], atol=2e-6)


def test_fewer_layers_give_the_hidden_states_of_that_layer() -> None:
    model, ids = _model("roberta"), _sequences(1)[0]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
    assert torch.allclose(_packed(model, layers=2).encode([ids])[0], expected, atol=2e-6)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_sequence_has_the_same_bits_alone_and_anywhere_in_any_batch(first_only: bool) -> None:
    encoder, sequences = _packed(_model("bert"), block=32), _sequences(90)
    together = encoder.encode(sequences, first_only=first_only)
    order = random.Random(1).sample(range(90), 90)
    shuffled = encoder.encode([sequences[i] for i in order], first_only=first_only)
    for place, i in enumerate(order):
        assert torch.equal(shuffled[place], together[i])
    for i in (0, 7, 89):
        assert torch.equal(encoder.encode([sequences[i]], first_only=first_only)[0], together[i])


def test_a_sequence_that_is_empty_or_too_long_is_refused() -> None:
    encoder = _packed(_model("roberta"))
    assert encoder.max_length == 128
    with pytest.raises(ValueError, match="sequence 1 has 129 tokens"):
        encoder.encode([[5], [5] * 129])
    with pytest.raises(ValueError, match="sequence 0 has 0 tokens"):
        encoder.encode([[]])


def test_a_checkpoint_that_lacks_a_tensor_or_has_another_shape_is_refused_by_its_name() -> None:
    model = _model("bert")
    config = EncoderConfig.from_json(model.config.to_dict(), "config.json")
    tensors = dict(model.state_dict())
    name = "encoder.layer.1.output.dense.weight"
    with pytest.raises(RewardSetupError, match=name):
        PackedEncoder.from_tensors({**tensors, name: tensors[name][:-1]}, config)
    del tensors[name]
    with pytest.raises(RewardSetupError, match=name):
        PackedEncoder.from_tensors(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_size": None}, "not a number"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RewardSetupError, match=message):
        EncoderConfig.from_json({**BertConfig(**SIZES).to_dict(), **change}, "config.json")
