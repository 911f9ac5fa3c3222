"""The RadCliQ formulas, and the training reward made of a backend's components.

Contract: pure functions, importable without torch or gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from reward_server.errors import RewardError

if TYPE_CHECKING:
    from configs.schema import RewardConfig


@dataclass(frozen=True)
class Formula:
    """A linear model of RadGraph F1, BERTScore, CheXbert similarity and BLEU-2, each standardised first."""

    means: tuple[float, float, float, float]
    scales: tuple[float, float, float, float]
    weights: tuple[float, float, float, float]
    intercept: float

    def __call__(self, graph: float, bertscore: float, labels: float, bleu2: float) -> float:
        values = (graph, bertscore, labels, bleu2)
        terms = zip(values, self.means, self.scales, self.weights, strict=True)
        return self.intercept + sum(weight * (value - mean) / scale for value, mean, scale, weight in terms)


# Both formulas predict the errors that radiologists count in a report: lower is better. Source: the fitted models of
# `CXR-Report-Metric` (Yu et al. 2023, doi:10.1016/j.patter.2023.100802).
RADCLIQ_V1 = Formula(  # -1.441 for four ones, 2.450 for four zeros
    means=(0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
    scales=(0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
    weights=(-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
    intercept=2.466552561323256e-10,
)
RADCLIQ_V0 = Formula(  # BLEU counts against a report here, as it was fitted
    means=(0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
    scales=(0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
    weights=(-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
    intercept=1.641666666666666,
)

# Of every backend's composite, all of which are RADCLIQ_V1's formula: a copy of the reference. There is no worst value,
# and 0 is an average report of those that it was fitted on: a clip of 0 or below may make sense.
BEST_COMPOSITE = RADCLIQ_V1(1.0, 1.0, 1.0, 1.0)

# The composite's component of every backend (or another of `reward.composite`); lower is better.
COMPOSITES: Mapping[str, str] = MappingProxyType(
    {"embedded": "embedded", "published": "radcliq_v1", "reference": "radcliq_v1"}
)


def reward_from_components(components: Mapping[str, float], cfg: RewardConfig) -> float:
    """The training reward, higher is better: quality - weighted penalties + weighted F1 of the positive findings.

    The quality is -(composite, cut at `cfg.clip`), or the sum of `cfg.component_weights` times those components.
    Raises RewardError if a component that counts is missing or not finite: no score is ever made up.
    """
    return sum(reward_terms(components, cfg).values())


def reward_terms(components: Mapping[str, float], cfg: RewardConfig) -> dict[str, float]:
    """What each component that counts adds to the training reward. Raises what `reward_from_components` does."""
    weights = {
        "repetition": -cfg.repetition_weight,
        "length": -cfg.length_weight,
        "positive_f1": cfg.positive_f1_weight,
    }
    for name, weight in cfg.component_weights.items():
        weights[name] = weights.get(name, 0.0) + weight
    terms = {name: weight * _component(name, components) for name, weight in weights.items() if weight}
    if not cfg.component_weights:
        name = cfg.composite or COMPOSITES[cfg.backend]
        composite = _component(name, components)
        terms[name] = terms.get(name, 0.0) - (composite if cfg.clip is None else min(composite, cfg.clip))
    return terms


def _component(name: str, components: Mapping[str, float]) -> float:
    value = components.get(name, math.nan)
    if not math.isfinite(value):
        raise RewardError(f"the reward needs the component {name!r}, the server gave {components.get(name)}")
    return value
