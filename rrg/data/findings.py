"""Findings: a closed list of codes, and how the MeSH codes of Open-i translate into them.

An Open-i code is a heading with qualifiers (`Opacity/lung/base/left/mild`; Demner-Fushman et al., JAMIA 2016). It
becomes a `Sign`: what is seen, on which side, in which zone, how severe. The signs of a study say three things that
therefore always agree: its finding labels, the regions that hold them, and what the renderer draws.

Rules where a code is silent (the report is silent too): no side = both sides; no zone = the finding's usual zone,
see `_USUAL_ZONE`. Codes of things that a frontal X-ray of 224 pixels can't show (kyphosis, osteopenia, ...) give no
sign; `unmapped` counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rrg.data.mesh_rules import RULES
from rrg.data.regions import REGIONS, SIDES, Side

FINDINGS: Final[tuple[str, ...]] = (
    "cardiomegaly",
    "opacity",
    "consolidation",
    "atelectasis",
    "effusion",
    "blunted_angle",
    "nodule",
    "granuloma",
    "calcified_nodes",
    "interstitial",
    "edema",
    "congestion",
    "hyperinflation",
    "hypoinflation",
    "emphysema",
    "pneumothorax",
    "elevated_diaphragm",
    "flattened_diaphragm",
    "tortuous_aorta",
    "aortic_calcification",
    "enlarged_hilum",
    "wide_mediastinum",
    "scoliosis",
    "degenerative_spine",
    "vertebral_deformity",
    "fracture",
    "scarring",
    "pleural_thickening",
    "hiatal_hernia",
    "catheter",
    "pacemaker",
    "tube",
    "surgical_material",
    "spinal_hardware",
    "foreign_body",
    "subcutaneous_emphysema",
)

Zone = Literal["apex", "upper", "mid", "lower", "hilum", "whole", "ribs", "clavicle", "chest", "abdomen", "neck"]

_ZONE_REGION: Final[Mapping[Zone, str]] = {
    "apex": "apical zone",
    "upper": "upper lung zone",
    "mid": "mid lung zone",
    "lower": "lower lung zone",
    "hilum": "hilar structures",
    "whole": "lung",
    "ribs": "lung",
    "clavicle": "clavicle",
    "chest": "lung",
    "abdomen": "abdomen",
    "neck": "apical zone",
}

# Qualifier -> zone; the first one in this order that a code has.
_ZONES: Final[tuple[tuple[str, Zone], ...]] = (
    ("ribs", "ribs"),
    ("clavicle", "clavicle"),
    ("abdomen", "abdomen"),
    ("neck", "neck"),
    ("cervical vertebrae", "neck"),
    ("hilum", "hilum"),
    ("apex", "apex"),
    ("middle lobe", "mid"),
    ("lingula", "mid"),
    ("upper lobe", "upper"),
    ("base", "lower"),
    ("lower lobe", "lower"),
    ("retrocardiac", "lower"),
    ("costophrenic angle", "lower"),
    ("cardiophrenic angle", "lower"),
    ("breast", "chest"),
    ("thorax", "chest"),
    ("mediastinum", "chest"),
)

_USUAL_ZONE: Final[Mapping[str, Zone]] = {
    "opacity": "lower",
    "consolidation": "lower",
    "atelectasis": "lower",
    "nodule": "mid",
    "granuloma": "upper",
    "calcified_nodes": "hilum",
    "enlarged_hilum": "hilum",
    "congestion": "hilum",
    "pneumothorax": "apex",
    "scarring": "apex",
    "pleural_thickening": "apex",
    "catheter": "chest",
    "pacemaker": "chest",
    "surgical_material": "chest",
    "foreign_body": "chest",
    "fracture": "ribs",
    "subcutaneous_emphysema": "chest",
}

# Findings whose region does not follow from side and zone.
_FIXED_REGIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "cardiomegaly": ("cardiac silhouette",),
    "tortuous_aorta": ("aortic arch", "mediastinum"),
    "aortic_calcification": ("aortic arch", "mediastinum"),
    "wide_mediastinum": ("mediastinum", "upper mediastinum"),
    "scoliosis": ("spine",),
    "degenerative_spine": ("spine",),
    "vertebral_deformity": ("spine",),
    "spinal_hardware": ("spine",),
    "hiatal_hernia": ("mediastinum", "abdomen"),
    "tube": ("trachea", "carina"),
}
_ANGLE: Final = frozenset({"effusion", "blunted_angle"})
_DIAPHRAGM: Final = frozenset({"elevated_diaphragm", "flattened_diaphragm"})
_CHEST_DEVICES: Final[Mapping[str, tuple[str, ...]]] = {
    "catheter": ("svc", "cavoatrial junction"),
    "pacemaker": ("cardiac silhouette", "right atrium"),
    "surgical_material": ("mediastinum",),
}
_SEVERITY: Final[Mapping[str, float]] = {
    "borderline": 0.25,
    "mild": 0.4,
    "small": 0.4,
    "moderate": 0.75,
    "severe": 1.0,
    "large": 1.0,
}


@dataclass(frozen=True)
class Sign:
    """One thing to see: a finding (of `FINDINGS`) at a place.

    `severity` is in (0, 1], 0.6 where the code does not grade; `sided` tells whether the code names the sides.
    `texture` is "", "round", "streaky", "patchy", "interstitial" or "diffuse"; `place` the qualifier that matters
    beyond the zone ("retrocardiac", "mediastinum", "coronary", "enteric", ...), or "".
    """

    finding: str
    sides: tuple[Side, ...]
    zone: Zone
    severity: float = 0.6
    multiple: bool = False
    sided: bool = False
    texture: str = ""
    place: str = ""

    @property
    def on_chest_wall(self) -> bool:
        """Whether this is surgical material of a breast or an axilla, not of the mediastinum."""
        named_side = self.sided and self.place != "mediastinum"
        return self.finding == "surgical_material" and (self.place == "breast" or named_side)

    @property
    def regions(self) -> frozenset[str]:
        """The regions of `REGIONS` that hold the finding; a lung zone's finding is the whole lung's too."""
        if self.finding in _FIXED_REGIONS:
            return frozenset(_FIXED_REGIONS[self.finding])
        if self.zone == "chest" and self.finding in _CHEST_DEVICES and not self.on_chest_wall:
            return frozenset(_CHEST_DEVICES[self.finding])
        if self.zone == "abdomen":
            return frozenset({"abdomen"})
        names: set[str] = set()
        for side in self.sides:
            if self.finding in _ANGLE:
                names |= {f"{side} costophrenic angle", f"{side} lung"}
                if self.finding == "effusion":
                    names.add(f"{side} lower lung zone")
            elif self.finding in _DIAPHRAGM:
                names.add(f"{side} hemidiaphragm")
            elif self.zone == "clavicle":
                names.add(f"{side} clavicle")
            else:
                names |= {f"{side} {_ZONE_REGION[self.zone]}", f"{side} lung"}
        return frozenset(names)


_TEXTURES: Final = ("interstitial", "round", "streaky", "patchy", "diffuse")
_PLACES: Final = ("retrocardiac", "mediastinum", "breast", "sternum", "abdomen", "neck")


def _sides(qualifiers: frozenset[str]) -> tuple[tuple[Side, ...], bool]:
    """Sides a code names, else both; a middle lobe or lingula names its side."""
    named = {side for side in SIDES if side in qualifiers}
    if "lingula" in qualifiers:
        named.add("left")
    if "middle lobe" in qualifiers and "left" not in named and "bilateral" not in qualifiers:
        named.add("right")
    if named and "bilateral" not in qualifiers:
        return tuple(side for side in SIDES if side in named), True
    return SIDES, "bilateral" in qualifiers


def usual_zone(finding: str) -> Zone:
    """Where a finding is when nothing says where."""
    return _USUAL_ZONE.get(finding, "whole")


def _zone(finding: str, qualifiers: frozenset[str]) -> Zone:
    return next((zone for qualifier, zone in _ZONES if qualifier in qualifiers), usual_zone(finding))


def parse_code(code: str) -> tuple[Sign, ...]:
    """The signs that one MeSH code means; none for `normal`, unknown headings, and things that can't be shown."""
    heading, *rest = (part.strip() for part in " ".join(code.split()).split("/"))
    qualifiers = frozenset(part.lower() for part in rest)
    sides, sided = _sides(qualifiers)
    severity = next((value for word, value in _SEVERITY.items() if word in qualifiers), 0.6)
    if heading == "Mass":
        severity = 1.0
    signs: dict[str, Sign] = {}
    for rule in RULES.get(heading, ()):
        if rule.finding in signs or not rule.holds(qualifiers):
            continue
        signs[rule.finding] = Sign(
            finding=rule.finding,
            sides=sides,
            zone=_zone(rule.finding, qualifiers),
            severity=severity,
            multiple=bool(qualifiers & {"multiple", "scattered"}),
            sided=sided,
            texture=next((word for word in _TEXTURES if word in qualifiers), ""),
            place=next((word for word in _PLACES if word in qualifiers), ""),
        )
    return tuple(signs.values())


def signs_from_mesh(codes: Iterable[str]) -> tuple[Sign, ...]:
    """The signs of a study, in the order of its codes, repeats dropped."""
    return tuple(dict.fromkeys(sign for code in codes for sign in parse_code(code)))


def labels_of(signs: Iterable[Sign]) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The finding codes of signs, and the finding codes of each of the 29 regions (an empty set: nothing there)."""
    by_region: dict[str, set[str]] = {region: set() for region in REGIONS}
    findings: set[str] = set()
    for sign in signs:
        findings.add(sign.finding)
        for region in sign.regions:
            by_region[region].add(sign.finding)
    return frozenset(findings), {region: frozenset(codes) for region, codes in by_region.items()}


def findings_from_mesh(codes: Iterable[str]) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """Finding codes of a study, and by region, from its MeSH codes (`labels_of` of `signs_from_mesh`)."""
    return labels_of(signs_from_mesh(codes))
