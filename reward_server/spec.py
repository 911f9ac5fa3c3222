"""The RadCliQ-v1 formula, and the training reward made of a backend's components.

Contract: pure functions, importable without torch or gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from reward_server.errors import RewardError

if TYPE_CHECKING:
    from configs.schema import RewardConfig

# Coefficients of RadCliQ-v1 (Yu et al. 2023, `CXR-Report-Metric`): mean, scale and weight of RadGraph F1, BERTScore,
# CheXbert similarity and BLEU-2, and the intercept.
_MEAN = (0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174)
_SCALE = (0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838)
_WEIGHT = (-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12)
_INTERCEPT = 2.466552561323256e-10

# The composite's component of every backend; lower is better.
COMPOSITES: Mapping[str, str] = MappingProxyType({"embedded": "embedded"})


def radcliq_v1(graph: float, bertscore: float, labels: float, bleu2: float) -> float:
    """RadCliQ-v1's linear formula: -1.441 for four ones, 2.450 for four zeros."""
    values = (graph, bertscore, labels, bleu2)
    return _INTERCEPT + sum(w * (v - m) / s for v, m, s, w in zip(values, _MEAN, _SCALE, _WEIGHT, strict=True))


def reward_from_components(components: Mapping[str, float], cfg: RewardConfig) -> float:
    """-(composite, cut at `cfg.clip`) - weighted penalties + weighted F1 of the positive findings; higher is better.

    Raises RewardError if a component is missing or not finite: no score is ever made up.
    """
    names = (COMPOSITES[cfg.backend], "repetition", "length", "positive_f1")
    for name in names:
        if not math.isfinite(components.get(name, math.nan)):
            raise RewardError(f"the reward needs the component {name!r}, the server gave {components.get(name)}")
    composite, repetition, length, positive = (components[name] for name in names)
    if cfg.clip is not None:
        composite = min(composite, cfg.clip)
    return (
        -composite - cfg.repetition_weight * repetition - cfg.length_weight * length + cfg.positive_f1_weight * positive
    )
