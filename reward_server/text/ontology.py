"""How findings and anatomies relate: what a finding already says, what contradicts it, what it is called elsewhere.

Contract: read-only tables over the values of `vocabulary`, and `concept_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from reward_server.text.lexicon import Kind, Mention

# Words that contain their anatomy: it is not repeated as a relation.
OWN_ANATOMY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "cardiomegaly": frozenset({"heart", "cardiomediastinum"}),
        "enlarged cardiomediastinum": frozenset({"cardiomediastinum", "mediastinum", "heart"}),
        "consolidation": frozenset({"lung"}),
        "opacity": frozenset({"lung"}),
        "atelectasis": frozenset({"lung"}),
        "pneumonia": frozenset({"lung"}),
        "nodule": frozenset({"lung"}),
        "mass": frozenset({"lung"}),
        "scar": frozenset({"lung"}),
        "granuloma": frozenset({"lung", "lymph node"}),
        "emphysema": frozenset({"lung"}),
        "interstitial disease": frozenset({"lung"}),
        "edema": frozenset({"lung", "vasculature"}),
        "effusion": frozenset({"pleura"}),
        "pneumothorax": frozenset({"pleura"}),
        "pleural thickening": frozenset({"pleura"}),
        "hyperinflation": frozenset({"lung"}),
        "hypoinflation": frozenset({"lung", "lung volume"}),
        "flattened diaphragm": frozenset({"diaphragm"}),
        "elevated diaphragm": frozenset({"diaphragm"}),
        "eventration": frozenset({"diaphragm"}),
        "free air": frozenset({"diaphragm", "abdomen"}),
        "tortuous aorta": frozenset({"aorta"}),
        "atherosclerosis": frozenset({"aorta", "artery", "vasculature"}),
        "degenerative change": frozenset({"bone", "spine"}),
        "spine curvature": frozenset({"spine", "bone"}),
        "fracture": frozenset({"bone"}),
        "osteopenia": frozenset({"bone"}),
    }
)

# What a normal anatomy is free of; anatomies not listed: "<anatomy> abnormality".
NORMAL_OF: Mapping[str, str] = MappingProxyType(
    {
        "heart": "cardiomegaly",
        "cardiomediastinum": "enlarged cardiomediastinum",
        "mediastinum": "mediastinum abnormality",
        "airspace": "consolidation",
        "lung volume": "hypoinflation",
        "upper lung": "lung abnormality",
        "middle lung": "lung abnormality",
        "lower lung": "lung abnormality",
        "spine": "bone abnormality",
        "rib": "bone abnormality",
        "clavicle": "bone abnormality",
    }
)

# A finding and the general statement that it contradicts ("the lungs are clear").
GENERAL_OF: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "opacity",
                "consolidation",
                "pneumonia",
                "atelectasis",
                "edema",
                "interstitial disease",
                "nodule",
                "mass",
                "cavity",
                "scar",
                "granuloma",
                "emphysema",
                "tuberculosis",
            ),
            "lung abnormality",
        ),
        **dict.fromkeys(
            ("degenerative change", "fracture", "spine curvature", "osteopenia", "bone lesion", "dislocation"),
            "bone abnormality",
        ),
        **dict.fromkeys(("effusion", "pneumothorax", "pleural thickening"), "pleura abnormality"),
        "cardiomegaly": "enlarged cardiomediastinum",
        "mediastinum abnormality": "enlarged cardiomediastinum",
        "tortuous aorta": "aorta abnormality",
        "atherosclerosis": "aorta abnormality",
    }
)

# Names for much the same shadow: half credit for one in place of another.
FAMILY_OF: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("opacity", "consolidation", "pneumonia", "atelectasis"), "airspace"),
        **dict.fromkeys(("nodule", "mass", "granuloma"), "nodule"),
        **dict.fromkeys(("emphysema", "hyperinflation", "flattened diaphragm"), "obstructive"),
        **dict.fromkeys(("edema", "interstitial disease"), "interstitial"),
    }
)

# Put there by people: no finding, but as much present or absent as one.
DEVICES = frozenset(
    {"catheter", "pacemaker", "tube", "clip", "sternotomy", "valve", "stent", "hardware", "foreign body"}
)

_BY_ANATOMY: Mapping[Kind, Mapping[str, str]] = MappingProxyType(
    {
        Kind.ENLARGED: {
            "heart": "cardiomegaly",
            "cardiomediastinum": "enlarged cardiomediastinum",
            "mediastinum": "enlarged cardiomediastinum",
            "aorta": "tortuous aorta",
            "vasculature": "edema",
            "hilum": "enlarged hilum",
            "artery": "enlarged artery",
            "lymph node": "adenopathy",
        },
        Kind.BORDERLINE: {"heart": "cardiomegaly", "cardiomediastinum": "enlarged cardiomediastinum"},
        Kind.CALCIFIED: {
            "aorta": "atherosclerosis",
            "artery": "atherosclerosis",
            "vasculature": "atherosclerosis",
            "lymph node": "granuloma",
            "hilum": "granuloma",
            "mediastinum": "granuloma",
            "lung": "granuloma",
            "": "calcification",
        },
        Kind.ELEVATED: {"diaphragm": "elevated diaphragm"},
        Kind.LOW: {"lung volume": "hypoinflation"},
    }
)


def concept_of(mention: Mention, anatomies: Sequence[str]) -> str | None:
    """The finding that a mention names; "enlarged", "calcified", ... need the anatomy they are said of (else None)."""
    if mention.kind is Kind.FINDING:
        return mention.value
    table = _BY_ANATOMY[mention.kind]
    return next((table[name] for name in anatomies if name in table), table.get(""))
