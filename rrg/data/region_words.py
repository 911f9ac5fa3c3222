"""Words that speak of each region, for `rrg.data.mentions.region_sentences`: regular expressions on cleaned text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_LUNG: Final = (
    r"\blungs?\b|\bpulmonary\b|\bopaci\w+|\bconsolidat\w+|\bair ?space\b|\bpneumothora\w+|\binfiltrat\w*|\bnodul\w+|"
    r"\batelecta\w+|\bgranuloma\w*|\binterstiti\w+|\bemphysem\w+"
)
_PARTS: Final = MappingProxyType(
    {
        "lung": _LUNG,
        "upper lung zone": r"\bupper (?:lobe|lung|zone)s?\b",
        "mid lung zone": r"\bmiddle lobe\b|\blingul\w*|\bmid ?-?lungs?\b|\bmidlung\b",
        "lower lung zone": r"\blower (?:lobe|lung|zone)s?\b|\bbas(?:e|es|al|ilar)\b|\bbibasilar\b|\bretrocardiac\b",
        "hilar structures": r"\bhil(?:ar|um|a)\b|\bperihilar\b|\bpulmonary arter\w+|\bvascula\w+",
        "apical zone": r"\bap(?:ex|ices|ical)\b|\bbiapical\b|\bpneumothora\w+",
        "costophrenic angle": r"\bcostophrenic\b|\beffusions?\b|\bpleural\b|\bblunt\w*",
        "hemidiaphragm": r"\bdiaphragm\w*|\bhemidiaphragm\w*|\beventrat\w+",
        "clavicle": r"\bclavic\w+|\bacromio\w+",
    }
)
_MIDLINE: Final = MappingProxyType(
    {
        "trachea": r"\btrache\w+|\bairways?\b",
        "spine": r"\bspin(?:e|al)\b|\bvertebra\w*|\bscolio\w+|\bosteophyt\w*|\bspondyl\w+|\bosseous\b|\bbony\b"
        r"|\bbones?\b|\bdegenerative\b|\bskelet\w+",
        "aortic arch": r"\baort\w+|\bathero\w+",
        "mediastinum": r"\bmediastin\w+|\bcardiomediastin\w+|\bhernia\b|\bstern\w+",
        "upper mediastinum": r"\b(?:upper|superior) mediastin\w+|\bparatracheal\b|\bmediastin\w+",
        "svc": r"\bsvc\b|\bvena cava\b|\bcatheter\b|\bpicc\b|\bport\b",
        "cardiac silhouette": r"\bheart\b|\bcardiac\b|\bcardiom\w+|\bpace\w*maker\b|\bleads?\b",
        "cavoatrial junction": r"\bcavoatrial\b|\bcatheter\b|\bpicc\b|\bport\b",
        "right atrium": r"\bright atri\w+|\bleads?\b",
        "carina": r"\bcarina\w*|\bendotracheal\b|\bsubcarinal\b",
        "abdomen": r"\babdom\w+|\bstomach\b|\bbowel\b|\bupper quadrant\b|\bfree air\b|\bcholecystectomy\b|\bhernia\b",
    }
)
REGION_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {f"{side} {part}": words for side in ("right", "left") for part, words in _PARTS.items()} | dict(_MIDLINE)
)
