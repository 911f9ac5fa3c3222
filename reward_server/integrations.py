"""Reward functions for trainers that are not ours: TRL's GRPOTrainer and OpenRLHF. Neither package is needed here.

Contract: the functions are thread-safe, can be pickled, and connect when they are first called, once a process. The
reward is -composite without penalties unless a RewardConfig says otherwise. A pair that can't be scored is an error (or
None, if asked for, where the trainer knows it); a score is never made up.

    # TRL: the data set has a column "reference" with the radiologist's report
    trainer = GRPOTrainer(model, reward_funcs=trl_reward(["10.0.0.5:50051"]), train_dataset=dataset, ...)

    # OpenRLHF: a file reward.py, given with the option of the reward's URL; the label key is the reference's column
    reward_func = openrlhf_reward(["10.0.0.5:50051"])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from configs.schema import RewardConfig
from reward_server.client import RewardClient
from reward_server.errors import PairError, RewardError
from reward_server.pairs import Score
from reward_server.questions import SCORES
from reward_server.scoring import plain_reward
from reward_server.spec import reward_from_components

if TYPE_CHECKING:
    from reward_server.security import ClientSecurity

# What ends a response of the usual chat models; OpenRLHF decodes them into the text.
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")


def trl_reward(
    addresses: Sequence[str],
    *,
    reference_column: str = "reference",
    cfg: RewardConfig | None = None,
    failed: Literal["raise", "none"] = "raise",
    timeout_s: float = 120.0,
    security: ClientSecurity | None = None,
) -> Callable[..., list[float | None]]:
    """For `reward_funcs` of TRL's GRPOTrainer: completions are strings or chats, which end with the assistant's report.

    `failed="none"` gives None for a pair without a score. TRL leaves None out of the sum over its reward functions, so
    use it beside other functions only: alone, the sum is 0, a better reward than most reports get.
    """

    def radiology_reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        if reference_column not in columns:
            raise RewardError(f"the data set has no column {reference_column!r}; it has {', '.join(sorted(columns))}")
        ask = _asker(tuple(addresses), timeout_s, security)
        pairs = list(zip(columns[reference_column], map(_chat_text, completions), strict=True))
        answers = ask.client.score_each(pairs)
        scored = [answer for answer in answers if not isinstance(answer, PairError)]
        scores = SCORES.values_of(answers) if failed == "raise" else scored
        if "log_metric" in columns and scores:
            for name, mean in _means(scores).items():
                columns["log_metric"](f"reward_components/{name}", mean)
        return [None if isinstance(answer, PairError) else ask.reward(answer, cfg) for answer in answers]

    return radiology_reward


def openrlhf_reward(
    addresses: Sequence[str],
    *,
    end_tokens: Sequence[str] = END_TOKENS,
    cfg: RewardConfig | None = None,
    timeout_s: float = 120.0,
    security: ClientSecurity | None = None,
) -> Callable[..., dict[str, Any]]:
    """The `reward_func` of OpenRLHF: queries are prompt + response, with special tokens; labels are the references.

    `scores`, which dynamic filtering compares with its range, are the rewards: give the range in rewards.
    """

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
        import torch

        ask = _asker(tuple(addresses), timeout_s, security)
        responses = [_response(query, prompt, end_tokens) for query, prompt in zip(queries, prompts, strict=True)]
        scores = ask.client.score(list(zip(labels, responses, strict=True)))
        rewards = torch.tensor([ask.reward(score, cfg) for score in scores])
        logs = {name: torch.tensor([score[name] for score in scores]) for name in (scores[0] if scores else ())}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return reward_func


class _Asker:
    """A client, and the reward of what it brings."""

    def __init__(self, client: RewardClient) -> None:
        self.client = client
        self._plain = plain_reward(client.describe())

    def reward(self, score: Score, cfg: RewardConfig | None) -> float:
        return reward_from_components(score, cfg or self._plain)


@functools.cache
def _asker(addresses: tuple[str, ...], timeout_s: float, security: ClientSecurity | None) -> _Asker:
    """One a process; it lives as long as the process."""
    return _Asker(RewardClient(addresses, timeout_s, security))


def _chat_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The report in a completion: itself, or the last message, whose content may be a list of typed parts."""
    if isinstance(completion, str):
        return completion
    if not completion or completion[-1]["role"] != "assistant":
        raise RewardError("a completion must be a string, or messages of which the assistant's is the last")
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _response(query: str, prompt: str, end_tokens: Sequence[str]) -> str:
    """What follows the prompt, up to the first end token."""
    _, found, response = query.partition(prompt)
    if not found:
        raise RewardError("a query does not contain its prompt: was the prompt truncated? Raise its maximal length")
    ends = [place for token in end_tokens if (place := response.find(token)) >= 0]
    return response[: min(ends, default=len(response))].strip()


def _means(scores: Sequence[Score]) -> Score:
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
