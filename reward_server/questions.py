"""What the clients ask about a list of items, which is all in which scoring, explaining and labelling differ for them.

Contract: pure functions. A request keeps gRPC's limit of a message, and an answer is read only if it is complete and
its values are possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from protos import reward_pb2
from reward_server.errors import PairError, RewardError
from reward_server.explanation import Entity, Explained, Explanation, Relation
from reward_server.pairs import Answer, Labelled, Score, size_or_error, text_size_or_error
from reward_server.scorer import Labels, Pair
from reward_server.text.labels import LABELS as CONDITIONS

MESSAGE_BYTES = 64 * 2**20

_ITEMS_PER_REQUEST = 64
_BYTES_PER_REQUEST = 8 * 2**20
_LONGEST_ITEM_BYTES = MESSAGE_BYTES - 1024
_CLASSES = range(4)

I = TypeVar("I")  # noqa: E741
V = TypeVar("V")


@dataclass(frozen=True)
class Question(Generic[I, V]):
    """A method of the service that gives a value for each item of its request."""

    method: str
    item: str  # "pair", for messages
    value: str  # "score"
    fields: str  # what an item consists of
    size: Callable[[I], int | PairError]  # bytes
    request: Callable[[Sequence[I]], Any]
    read: Callable[[Any], list[V | PairError]]  # a response's values; RewardError if they can't be right

    def about(self, items: int) -> str:
        """What a caller waits for."""
        return f"the {self.value}s of {items} {self.item}s"

    def split(self, items: Sequence[I], answers: list[V | PairError | None]) -> Iterator[list[int]]:
        """Indices of the items of each request. An item that can't be sent gets its PairError in `answers` instead."""
        part: list[int] = []
        room = _BYTES_PER_REQUEST
        for i, item in enumerate(items):
            size = self.size(item)
            if not isinstance(size, PairError) and size > _LONGEST_ITEM_BYTES:
                size = PairError(f"{self.fields}: {size} bytes, a message holds {_LONGEST_ITEM_BYTES}")
            if isinstance(size, PairError):
                answers[i] = size
                continue
            if part and (len(part) == _ITEMS_PER_REQUEST or size > room):
                yield part
                part, room = [], _BYTES_PER_REQUEST
            part.append(i)
            room -= size
        if part:
            yield part

    def values_of(self, answers: Sequence[V | PairError]) -> list[V]:
        """The answers, if none is an error; else the first item's error, with how many there are."""
        errors = [(i, answer) for i, answer in enumerate(answers) if isinstance(answer, PairError)]
        if errors:
            i, error = errors[0]
            raise PairError(
                f"{len(errors)} of {len(answers)} {self.item}s have no {self.value}; {self.item} {i}: {error}"
            )
        return [answer for answer in answers if not isinstance(answer, PairError)]


def _messages(pairs: Sequence[Pair]) -> list[reward_pb2.Pair]:
    return [reward_pb2.Pair(reference=reference, hypothesis=hypothesis) for reference, hypothesis in pairs]


def _read_scores(response: reward_pb2.ScoreResponse) -> list[Answer]:
    answers: list[Answer] = [
        PairError(score.error) if score.error else dict(score.components) for score in response.scores
    ]
    scores = [answer for answer in answers if not isinstance(answer, PairError)]
    for score in scores:
        if not score or score.keys() != scores[0].keys():
            raise RewardError(f"pairs came back with different components: {list(score)} and {list(scores[0])}")
        for name, value in score.items():
            if not math.isfinite(value):
                raise RewardError(f"a score is not finite: {name} is {value}")
    return answers


def _read_explanations(response: reward_pb2.ExplainResponse) -> list[Explained]:
    return [PairError(one.error) if one.error else _read_explanation(one) for one in response.explanations]


def _read_explanation(message: reward_pb2.PairExplanation) -> Explanation:
    graphs = [message.reference, message.hypothesis]
    for own, other in (graphs, graphs[::-1]):
        for one in own:
            if not -1 <= one.credit <= 1 or not 0 <= one.start <= one.end:
                raise RewardError(f"an entity can't have the credit {one.credit} and the place {one.start}-{one.end}")
            if one.HasField("counterpart") and not 0 <= one.counterpart < len(other):
                raise RewardError(f"an entity's counterpart is {one.counterpart} of {len(other)}")
    return Explanation(*(tuple(map(_read_entity, graph)) for graph in graphs))


def _read_entity(message: reward_pb2.Entity) -> Entity:
    return Entity(
        name=message.name,
        label=message.label,
        start=message.start,
        end=message.end,
        credit=message.credit,
        counterpart=message.counterpart if message.HasField("counterpart") else None,
        relations=tuple(Relation(one.kind, one.target, one.target_label, one.credit) for one in message.relations),
    )


def _read_labels(response: reward_pb2.LabelResponse) -> list[Labelled]:
    answers: list[Labelled] = []
    for found in response.labels:
        classes = tuple(found.classes)
        if not found.error and (len(classes) != len(CONDITIONS) or not all(label in _CLASSES for label in classes)):
            raise RewardError(f"a text's labels must be {len(CONDITIONS)} classes from 0 to 3, not {list(classes)}")
        answers.append(PairError(found.error) if found.error else classes)
    return answers


SCORES: Question[Pair, Score] = Question(
    method="Score",
    item="pair",
    value="score",
    fields="reference and hypothesis",
    size=size_or_error,
    request=lambda pairs: reward_pb2.ScoreRequest(pairs=_messages(pairs)),
    read=_read_scores,
)
EXPLANATIONS: Question[Pair, Explanation] = Question(
    method="Explain",
    item="pair",
    value="explanation",
    fields="reference and hypothesis",
    size=size_or_error,
    request=lambda pairs: reward_pb2.ExplainRequest(pairs=_messages(pairs)),
    read=_read_explanations,
)
LABELS: Question[str, Labels] = Question(
    method="Label",
    item="text",
    value="label",
    fields="text",
    size=text_size_or_error,
    request=lambda texts: reward_pb2.LabelRequest(texts=texts),
    read=_read_labels,
)
