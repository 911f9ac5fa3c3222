"""The losses against those of TRL's GRPOTrainer: its own code, on a real (tiny) model, value and gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import CorrectionConfig, KLConfig, RLConfig
from learner.objectives import surrogates
from learner.objectives.advantages import sequence_advantages
from learner.objectives.loss import TokenBatch, policy_loss
from learner.objectives.reduction import Denominators

DOCS = Path(__file__).parents[3] / "docs/algorithms.md"
PROMPT, COMPLETION, ROWS, VOCABULARY = 3, 6, 4, 24
BETA = 0.3
BASE = RLConfig(clip_low=0.2, clip_high=0.28, kl=KLConfig(place="off"), correction=CorrectionConfig(mode="off"))


@dataclass(frozen=True)
class Case:
    """Settings of ours and the options of TRL that mean the same."""

    ours: RLConfig
    trl: dict[str, Any]
    corrected: bool = False


CASES = {
    "grpo": Case(replace(BASE, reduction="sequences"), {"loss_type": "grpo"}),
    "dr_grpo": Case(replace(BASE, reduction="constant"), {"loss_type": "dr_grpo"}),
    "bnpo": Case(replace(BASE, reduction="tokens"), {"loss_type": "bnpo"}),
    "dapo": Case(replace(BASE, reduction="tokens"), {"loss_type": "dapo"}),
    "dual clip": Case(replace(BASE, dual_clip=1.4), {"loss_type": "dapo", "delta": 1.4}),
    "gspo": Case(
        replace(BASE, surrogate="gspo", reduction="sequences", clip_low=0.02, clip_high=0.03),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    ),
    # TRL's epsilon_high of cispo is the cap itself, and there is no lower end.
    "cispo": Case(
        replace(BASE, surrogate="cispo", clip_low=1.0, clip_high=0.5), {"loss_type": "cispo", "epsilon_high": 1.5}
    ),
    "k3": Case(
        replace(BASE, kl=KLConfig(estimator="k3")),
        {"loss_type": "dapo", "use_bias_correction_kl": True},
    ),
    "truncated": Case(
        replace(BASE, correction=CorrectionConfig(cap=1.2)),
        {"loss_type": "dapo", "vllm_importance_sampling_mode": "token_truncate"},
        corrected=True,
    ),
    "masked reports": Case(
        replace(BASE, reduction="sequences", correction=CorrectionConfig("mask", "sequence", 1.2)),
        {"loss_type": "grpo", "vllm_importance_sampling_mode": "sequence_mask"},
        corrected=True,
    ),
}


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

    def make(options: dict[str, Any]) -> GRPOTrainer:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **shape)).double()
        config = {
            "output_dir": str(Path(folder)),
            "max_completion_length": COMPLETION,
            "per_device_train_batch_size": ROWS,
            "num_generations": ROWS,
            "beta": 0.0,
            "epsilon": BASE.clip_low,
            "epsilon_high": 0.28,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
        }
        return GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(**(config | options)),
            train_dataset=Dataset.from_dict({"prompt": ["w2 w3 w4"] * ROWS}),
            processing_class=tokenizer,
        )

    return make


def sampled() -> dict[str, Tensor]:
    """What TRL's loss takes: ids, masks, advantages, and log-probs of the old policy and the reference."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 3, 1, 5])
    logps = -2.5 - 1.5 * torch.rand(3, ROWS, COMPLETION, generator=generator, dtype=torch.float64)
    return {
        "prompt_ids": torch.randint(2, VOCABULARY, (ROWS, PROMPT), generator=generator),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(2, VOCABULARY, (ROWS, COMPLETION), generator=generator),
        "completion_mask": (torch.arange(COMPLETION) < lengths[:, None]).long(),
        "advantages": torch.tensor([1.0, -1.5, 0.5, -0.25], dtype=torch.float64),
        "old_per_token_logps": logps[0],
        "ref_per_token_logps": logps[1],
        "sampling_per_token_logps": logps[0] + 0.2 * torch.randn(ROWS, COMPLETION, generator=generator),
        "num_items_in_batch": lengths.sum(),
    }


def our_loss(trainer: Any, inputs: dict[str, Tensor], settings: RLConfig) -> Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    current, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, there, COMPLETION, compute_entropy=True
    )
    mask = inputs["completion_mask"].bool()
    batch = TokenBatch(
        current=current,
        proximal=inputs["old_per_token_logps"],
        behaviour=inputs["sampling_per_token_logps"],
        reference=inputs["ref_per_token_logps"],
        entropy=entropy,
        advantages=inputs["advantages"][:, None].expand(ROWS, COMPLETION),
        mask=mask,
    )
    return policy_loss(batch, settings, BETA, Denominators(float(mask.sum()), ROWS, COMPLETION)).loss


def trl_ratio(trainer: Any, inputs: dict[str, Tensor]) -> Tensor:
    """TRL's importance ratio, as its generation step makes it (which needs a vLLM server)."""
    mode = trainer.vllm_importance_sampling_mode
    difference = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]) * inputs["completion_mask"]
    ratio = (difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference).exp()
    return ratio.clamp(max=1.2) if mode.endswith("truncate") else ratio.masked_fill(ratio > 1.2, 0.0)


@pytest.mark.parametrize("name", list(CASES))
def test_the_loss_and_its_gradient_are_those_of_trl(make_trainer: Any, name: str) -> None:
    case, inputs = CASES[name], sampled()
    trainer = make_trainer(case.trl)
    trainer.model.eval()  # In training mode TRL divides by the accumulation steps.
    if case.ours.kl.place == "loss":
        trainer.beta = BETA  # Given to the constructor, it would look for the reference model on the hub.
    if case.corrected:
        trainer.use_vllm = True
        inputs["importance_sampling_ratio"] = trl_ratio(trainer, inputs)
    gradients, losses = [], []
    for loss in (our_loss(trainer, inputs, case.ours), trainer._compute_loss(trainer.model, inputs)):
        trainer.model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert abs(losses[1]) > 1e-3
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert gradients[1].norm() > 1e-3
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)  # The RMS norms of Llama are in float32.


def test_the_surrogate_that_the_docs_add_as_an_example_is_trl_s(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    names = {**vars(surrogates)}
    exec(code, names)
    monkeypatch.setitem(surrogates.SURROGATES, "sapo", names["sapo"])
    inputs = sampled()
    trainer = make_trainer({"loss_type": "sapo"})
    trainer.model.eval()
    ours = our_loss(trainer, inputs, replace(BASE, surrogate="sapo", reduction="sequences"))
    assert float(ours) == pytest.approx(float(trainer._compute_loss(trainer.model, inputs)), abs=1e-9)


def test_the_cases_reach_the_clips_and_caps_that_they_compare(make_trainer: Any) -> None:
    inputs = sampled()
    trainer = make_trainer({})
    for name in ("dual clip", "gspo", "cispo", "truncated", "masked reports"):
        case = CASES[name]
        free = replace(case.ours, clip_low=0.999, clip_high=1e6, dual_clip=None, correction=CorrectionConfig("off"))
        bounded = our_loss(trainer, inputs, case.ours)
        assert abs(float(bounded - our_loss(trainer, inputs, free))) > 1e-4, name


def test_grpo_s_advantages_are_trl_s_but_for_the_kind_of_standard_deviation() -> None:
    """TRL divides by the sample standard deviation (n - 1) plus 1e-4, DeepSeekMath and we by the population's."""
    rewards = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.5, 0.0, 2.0, 4.0]], dtype=torch.float64)
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    trl = ((rewards - mean) / (std + 1e-4)).flatten()
    ours = sequence_advantages("grpo", rewards.flatten().tolist(), list("aaaabbbb"), [True] * 8).values
    assert torch.allclose(torch.from_numpy(ours).double() * (3 / 4) ** 0.5, trl, atol=2e-4)
