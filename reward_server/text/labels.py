"""The 14 labels of CheXpert (Irvin et al. 2019) read from statements, and how alike two reports' labels are.

Contract: pure functions. Because the labels come from statements, which do not depend on the phrasing, neither do
they: "heart size within normal limits" and "the heart is normal in size" both give cardiomegaly absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from reward_server.text.ontology import DEVICES
from reward_server.text.statements import Statement, Status

LABELS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)  # CheXbert's classes
_LABEL_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "enlarged cardiomediastinum": ("Enlarged Cardiomediastinum",),
        "cardiomegaly": ("Cardiomegaly",),
        "opacity": ("Lung Opacity",),
        "interstitial disease": ("Lung Opacity",),
        "scar": ("Lung Opacity",),
        "nodule": ("Lung Lesion",),
        "mass": ("Lung Lesion",),
        "granuloma": ("Lung Lesion",),
        "cavity": ("Lung Lesion",),
        "edema": ("Edema", "Lung Opacity"),
        "consolidation": ("Consolidation", "Lung Opacity"),
        "pneumonia": ("Pneumonia", "Lung Opacity"),
        "atelectasis": ("Atelectasis", "Lung Opacity"),
        "pneumothorax": ("Pneumothorax",),
        "effusion": ("Pleural Effusion",),
        "pleural thickening": ("Pleural Other",),
        "fracture": ("Fracture",),
        **dict.fromkeys(DEVICES - {"clip", "sternotomy", "foreign body"}, ("Support Devices",)),
        # General statements.
        "lung abnormality": ("Lung Opacity",),
        "pleura abnormality": ("Pleural Effusion", "Pneumothorax"),
        "bone abnormality": ("Fracture",),
    }
)
# An absent finding says little beside a present one, for most reports list the same absent ones.
_VALUES = {Status.PRESENT: 1.0, Status.UNCERTAIN: 0.5, Status.ABSENT: -0.25}
_CLASSES = {0.0: BLANK, 1.0: POSITIVE, -0.25: NEGATIVE, 0.5: UNCERTAIN}


def label_vector(statements: Sequence[Statement]) -> tuple[float, ...]:
    """One value a label of `LABELS`: 1 present, 0.5 uncertain, -0.25 absent, 0 not mentioned.

    "No Finding" is 1 if nothing of the lexicon is present or uncertain and something is said. A parent label that only
    its child implies ("Lung Opacity" of an absent consolidation) stays blank unless the child is there.
    """
    values = dict.fromkeys(LABELS, 0.0)
    for statement in statements:
        value = _VALUES[statement.status]
        if not statement.specific and statement.status is not Status.ABSENT:
            continue
        for rank, label in enumerate(_LABEL_OF.get(statement.concept, ())):
            implied = rank > 0 and value < 0 and statement.specific
            if not implied:
                values[label] = _stronger(values[label], value)
    abnormal = any(s.specific and s.status is not Status.ABSENT for s in statements)
    values["No Finding"] = 0.0 if abnormal or not statements else 1.0
    return tuple(values[label] for label in LABELS)


def label_classes(vector: Iterable[float]) -> tuple[int, ...]:
    """CheXbert's class for each value of a `label_vector`."""
    return tuple(_CLASSES[value] for value in vector)


def label_similarity(reference: Iterable[float], hypothesis: Iterable[float]) -> float:
    """Cosine of two label vectors, cut at 0 from below; 1 if both are blank, 0 if only one is."""
    a, b = tuple(reference), tuple(hypothesis)
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    if not norms:
        return float(a == b)
    return min(1.0, max(0.0, sum(x * y for x, y in zip(a, b, strict=True)) / norms))


def _stronger(a: float, b: float) -> float:
    """What is present outweighs what is uncertain, and that what is absent."""
    return max(a, b) if max(a, b) > 0 else min(a, b)
