"""A published version is served exactly, or refused with the reason while the old one stays in force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from actors.errors import EngineError, WeightsError
from actors.rollout import RolloutWorker
from actors.trajectory import SampleRequest, WeightsRef
from rrg.data import StudySet
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import published


def reports(worker: RolloutWorker, studies: StudySet, weights: WeightsRef) -> list[tuple[bytes, bytes]]:
    request = SampleRequest(0, 0, tuple(studies.studies), 2, weights, score=False)
    return [(t.token_ids.tobytes(), t.logprobs.tobytes()) for t in worker.collect(request)[0]]


def test_a_new_version_changes_the_reports_and_going_back_restores_them(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    first = reports(worker, studies, published(policy, 0))
    second = reports(worker, studies, published(other_policy, 1))
    assert worker.version == 1
    assert not set(first) & set(second)
    assert reports(worker, studies, published(policy, 2)) == first


def test_the_same_number_with_other_weights_is_loaded(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    first = reports(worker, studies, published(policy, 0))
    assert reports(worker, studies, published(other_policy, 0)) != first


def faulty(ref: WeightsRef, good: WeightsRef, fault: str) -> WeightsRef:
    tensors = dict(ref.tensors)
    if fault == "LLM of another version":
        tensors |= {name: value for name, value in good.tensors.items() if name.startswith("llm.")}
    elif fault == "extractor of another version":
        tensors |= {name: value for name, value in good.tensors.items() if name.startswith("extractor.")}
    elif fault == "one layer of another version":
        name = "llm.model.layers.0.mlp.down_proj.weight"
        tensors[name] = good.tensors[name]
    elif fault == "NaN in the extractor":
        tensors["extractor.region_queries"] = np.full_like(tensors["extractor.region_queries"], np.nan)
    elif fault == "lacking extractor tensor":
        del tensors["extractor.region_queries"]
    return dataclasses.replace(ref, tensors=tensors)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("LLM of another version", "version 7 failed its canary: the log-probabilities.*version 0 stays"),
        ("extractor of another version", "version 7 failed its canary: the prompt embeds.*version 0 stays"),
        ("one layer of another version", "version 7 failed its canary"),
        ("NaN in the extractor", "version 7: extractor.region_queries holds NaN"),
        ("lacking extractor tensor", "version 7 lacks 1 tensors"),
    ],
)
def test_faulty_weights_are_refused_and_the_old_version_serves_on(
    worker: RolloutWorker, studies: StudySet, policy: ReportPolicy, other_policy: ReportPolicy, fault: str, reason: str
) -> None:
    good = published(policy, 0)
    before = reports(worker, studies, good)
    with pytest.raises(WeightsError, match=reason):
        worker.update(faulty(published(other_policy, 7), good, fault))
    assert worker.version == 0
    assert reports(worker, studies, good) == before


def test_without_weights_nothing_is_served(worker: RolloutWorker) -> None:
    worker.engine.version = None
    with pytest.raises(EngineError, match="no weights yet"):
        worker.engine.generate([], None)  # type: ignore[arg-type]
