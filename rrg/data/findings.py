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
    "aortic_calcification": ("aortic arch",),
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
_VERTEBRAE: Final = frozenset({"thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "spine"})
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
    def regions(self) -> frozenset[str]:
        """The regions of `REGIONS` that hold the finding; a lung zone's finding is the whole lung's too."""
        if self.finding in _FIXED_REGIONS:
            return frozenset(_FIXED_REGIONS[self.finding])
        if self.zone == "chest" and self.finding in _CHEST_DEVICES:
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


@dataclass(frozen=True)
class _Rule:
    """`heading` with any of `any_of` (empty: always) and none of `none_of` means `finding`."""

    heading: str
    finding: str
    any_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()

    def holds(self, qualifiers: frozenset[str]) -> bool:
        return (not self.any_of or bool(self.any_of & qualifiers)) and not self.none_of & qualifiers


def _rules() -> dict[str, tuple[_Rule, ...]]:
    """All rules by heading; for a code each rule that holds gives a sign, once a finding."""
    big = frozenset({"enlarged", "prominent", "borderline"})
    extrapulmonary = frozenset({"ribs", "clavicle", "heart", "mediastinum", "breast", "humerus", "abdomen", "sternum"})
    joints = frozenset({"humerus", "shoulder", "sternum"})
    hilar = frozenset({"hilum", "lymph nodes", "mediastinum", "trachea, carina"})
    vessels = frozenset({"aorta", "aorta, thoracic", "blood vessels"})
    lung = frozenset({"lung"})

    def simple(finding: str, *headings: str) -> list[_Rule]:
        return [_Rule(heading, finding) for heading in headings]

    rules = [
        *simple("cardiomegaly", "Cardiomegaly", "Pericardial Effusion"),
        _Rule("Cardiac Shadow", "cardiomegaly", frozenset({"enlarged", "borderline"})),
        _Rule("Heart Ventricles", "cardiomegaly", big),
        _Rule("Heart Atria", "cardiomegaly", big),
        _Rule("Opacity", "interstitial", frozenset({"interstitial", "reticular"}), extrapulmonary),
        _Rule("Opacity", "nodule", frozenset({"round"}), extrapulmonary | {"interstitial", "reticular"}),
        _Rule("Opacity", "opacity", none_of=extrapulmonary | {"interstitial", "reticular", "round"}),
        _Rule("Density", "nodule", frozenset({"round"}), extrapulmonary),
        _Rule("Density", "opacity", frozenset({"lung", "retrocardiac"}), extrapulmonary | {"round"}),
        *simple("consolidation", "Airspace Disease", "Consolidation", "Pneumonia"),
        _Rule("Infiltrate", "interstitial", frozenset({"interstitial"})),
        _Rule("Infiltrate", "consolidation", none_of=frozenset({"interstitial"})),
        *simple("atelectasis", "Pulmonary Atelectasis"),
        *simple("effusion", "Pleural Effusion", "Hydropneumothorax", "Hemopneumothorax", "Hemothorax"),
        _Rule("Costophrenic Angle", "blunted_angle", frozenset({"blunted", "obscured"})),
        _Rule("Sulcus", "blunted_angle", frozenset({"blunted", "obscured"})),
        _Rule("Nodule", "nodule", none_of=frozenset({"breast", "ribs"})),
        _Rule("Mass", "nodule", none_of=frozenset({"breast", "abdomen"})),
        *simple("granuloma", "Calcified Granuloma", "Granulomatous Disease"),
        _Rule("Granuloma", "granuloma", none_of=_VERTEBRAE),
        _Rule("Calcinosis", "granuloma", lung, hilar | {"coronary vessels", "pleura"}),
        _Rule("Calcinosis", "calcified_nodes", hilar),
        _Rule("Calcinosis", "aortic_calcification", vessels),
        *simple("aortic_calcification", "Atherosclerosis"),
        *simple("interstitial", "Markings", "Lung Diseases, Interstitial", "Pulmonary Fibrosis", "Fibrosis"),
        *simple("interstitial", "Cystic Fibrosis", "Bronchiectasis"),
        *simple("edema", "Pulmonary Edema"),
        *simple("congestion", "Pulmonary Congestion", "Heart Failure"),
        _Rule("Lung", "hyperinflation", frozenset({"hyperdistention"})),
        _Rule("Lung", "hypoinflation", frozenset({"hypoinflation"})),
        _Rule("Lung", "interstitial", frozenset({"interstitial"})),
        _Rule("Lung", "enlarged_hilum", frozenset({"hilum"})),
        _Rule("Pulmonary Artery", "enlarged_hilum", big),
        *simple("enlarged_hilum", "Hypertension, Pulmonary"),
        *simple("emphysema", "Emphysema", "Pulmonary Emphysema", "Pulmonary Disease, Chronic Obstructive"),
        *simple("emphysema", "Bullous Emphysema", "Blister", "Lung, Hyperlucent"),
        *simple("pneumothorax", "Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
        _Rule("Diaphragm", "elevated_diaphragm", frozenset({"elevated"})),
        _Rule("Diaphragm", "flattened_diaphragm", frozenset({"flattened"})),
        *simple("elevated_diaphragm", "Diaphragmatic Eventration"),
        _Rule("Aorta", "tortuous_aorta", big | {"tortuous"}),
        _Rule("Aorta, Thoracic", "tortuous_aorta", big | {"tortuous"}),
        *simple("tortuous_aorta", "Aortic Aneurysm"),
        _Rule("Mediastinum", "wide_mediastinum", big),
        _Rule("Lymph Nodes", "wide_mediastinum", big),
        *simple("scoliosis", "Scoliosis"),
        *(_Rule(h, "degenerative_spine", frozenset({"degenerative"})) for h in (
            "Thoracic Vertebrae", "Thoracic vertebrae", "Spine", "Lumbar Vertebrae", "Cervical Vertebrae",
            "Bone and Bones",
        )),
        *(_Rule(h, "degenerative_spine", none_of=joints) for h in ("Osteophyte", "Spondylosis", "Arthritis")),
        *simple("degenerative_spine", "Hyperostosis, Diffuse Idiopathic Skeletal"),
        _Rule("Deformity", "vertebral_deformity", _VERTEBRAE),
        _Rule("Fractures, Bone", "vertebral_deformity", _VERTEBRAE),
        _Rule("Deformity", "fracture", frozenset({"ribs", "clavicle"})),
        _Rule("Fractures, Bone", "fracture", none_of=_VERTEBRAE | joints),
        _Rule("Cicatrix", "scarring", none_of=frozenset({"mediastinum", "abdomen"})),
        _Rule("Thickening", "pleural_thickening", frozenset({"pleura"})),
        *simple("hiatal_hernia", "Hernia, Hiatal", "Hernia, Diaphragmatic"),
        _Rule("Catheters, Indwelling", "catheter", none_of=frozenset({"thoracic vertebrae", "abdomen"})),
        _Rule("Medical Device", "pacemaker", none_of=joints | _VERTEBRAE | {"breast", "aortic valve"}),
        _Rule("Implanted Medical Device", "pacemaker",
              none_of=joints | _VERTEBRAE | {"breast", "aortic valve", "mitral valve", "abdomen", "neck"}),
        *simple("tube", "Tube, Inserted"),
        *simple("surgical_material", "Surgical Instruments", "Sutures"),
        *simple("spinal_hardware", "Spinal Fusion"),
        *simple("foreign_body", "Foreign Bodies"),
        *simple("subcutaneous_emphysema", "Subcutaneous Emphysema"),
    ]  # fmt: skip
    by_heading: dict[str, tuple[_Rule, ...]] = {}
    for rule in rules:
        by_heading[rule.heading] = (*by_heading.get(rule.heading, ()), rule)
    return by_heading


_RULES: Final[Mapping[str, tuple[_Rule, ...]]] = _rules()
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
    for rule in _RULES.get(heading, ()):
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
