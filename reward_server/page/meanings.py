"""What the components of every backend mean, in a line for people.

Contract: read-only tables; a test finds every component of every backend here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Meaning:
    """`lower` says that lower values are better; `span` are the values that it can have, or that real reports have."""

    text: str
    span: str
    lower: bool = False


_SHARED: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        "bleu2": Meaning("words and pairs of words in common (BLEU-2)", "0 to 1"),
        "repetition": Meaning("how much more it repeats itself than the reference does", "0 to 1", lower=True),
        "length": Meaning("how far its length is from the reference's, beyond a factor of 1.5", "0 and up", lower=True),
    }
)
_EMBEDDED: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        **_SHARED,
        "bertscore": Meaning("how close the words are in meaning (BERTScore on MiniLM)", "0 to 1"),
        "graph_f1": Meaning("F1 of what the two graphs state, read by rules; contradictions cost", "0 to 1"),
        "label_similarity": Meaning("cosine of the CheXpert labels, read by rules", "0 to 1"),
        "embedded": Meaning("the composite: RadCliQ's formula of the four above; not RadCliQ", "-1.44 to 2.45", True),
        "positive_f1": Meaning("F1 of the findings and devices that are there", "0 to 1"),
    }
)
_PUBLISHED: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        **_SHARED,
        "radgraph": Meaning("mean of the two F1 below, of RadGraph's graphs", "0 to 1"),
        "radgraph_entity": Meaning("F1 of the entities (words, label)", "0 to 1"),
        "radgraph_relation": Meaning("F1 of the relations (source, target, kind)", "0 to 1"),
        "radgraph_simple": Meaning("RadGraph F1, simple: entities alone", "0 to 1"),
        "radgraph_partial": Meaning("RadGraph F1, partial: and whether an entity has relations", "0 to 1"),
        "radgraph_complete": Meaning("RadGraph F1, complete: and which", "0 to 1"),
        "bertscore": Meaning(
            "how close the words are in meaning (BERTScore, distilroberta-base, rescaled)",
            "up to 1; about 0 for unrelated text, -5.55 for a blank",
        ),
        "semb": Meaning("cosine of CheXbert's embeddings of the reports", "0 to 1"),
        "radcliq_v1": Meaning(
            "the composite: errors that radiologists would count, standardised",
            "-1.44 to about 3 on real text, 11 for a blank",
            True,
        ),
        "radcliq_v0": Meaning(
            "the same as first published; counts BLEU against a report",
            "-0.24 to about 6 on real text, 21 for a blank",
            True,
        ),
        "positive_f1": Meaning("F1 of the findings that CheXbert calls positive", "0 to 1"),
    }
)
MEANINGS: Final[Mapping[str, Mapping[str, Meaning]]] = MappingProxyType(
    {"embedded": _EMBEDDED, "published": _PUBLISHED, "reference": _PUBLISHED}
)

# RadGraph's labels (Jain et al. 2021), then those of RadGraph-XL (Delbrouck et al. 2024).
LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ANAT-DP": "anatomy",
        "OBS-DP": "present",
        "OBS-DA": "absent",
        "OBS-U": "uncertain",
        "Anatomy::definitely present": "anatomy",
        "Observation::definitely present": "present",
        "Observation::definitely absent": "absent",
        "Observation::uncertain": "uncertain",
    }
)
