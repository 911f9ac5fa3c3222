"""Which MeSH headings of Open-i, with which qualifiers, mean which finding of `rrg.data.findings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_VERTEBRAE: Final = frozenset({"thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "spine"})


@dataclass(frozen=True)
class Rule:
    """`heading` with any of `any_of` (empty: always) and none of `none_of` means `finding`."""

    heading: str
    finding: str
    any_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()

    def holds(self, qualifiers: frozenset[str]) -> bool:
        return (not self.any_of or bool(self.any_of & qualifiers)) and not self.none_of & qualifiers


def _rules() -> dict[str, tuple[Rule, ...]]:
    """All rules by heading; for a code each rule that holds gives a sign, once a finding."""
    big = frozenset({"enlarged", "prominent", "borderline"})
    extrapulmonary = frozenset({"ribs", "clavicle", "heart", "mediastinum", "breast", "humerus", "abdomen", "sternum"})
    joints = frozenset({"humerus", "shoulder", "sternum"})
    hilar = frozenset({"hilum", "lymph nodes", "mediastinum", "trachea, carina"})
    vessels = frozenset({"aorta", "aorta, thoracic", "blood vessels"})
    lung = frozenset({"lung"})

    def simple(finding: str, *headings: str) -> list[Rule]:
        return [Rule(heading, finding) for heading in headings]

    rules = [
        *simple("cardiomegaly", "Cardiomegaly", "Pericardial Effusion"),
        Rule("Cardiac Shadow", "cardiomegaly", frozenset({"enlarged", "borderline"})),
        Rule("Heart Ventricles", "cardiomegaly", big),
        Rule("Heart Atria", "cardiomegaly", big),
        Rule("Opacity", "interstitial", frozenset({"interstitial", "reticular"}), extrapulmonary),
        Rule("Opacity", "nodule", frozenset({"round"}), extrapulmonary | {"interstitial", "reticular"}),
        Rule("Opacity", "opacity", none_of=extrapulmonary | {"interstitial", "reticular", "round"}),
        Rule("Density", "nodule", frozenset({"round"}), extrapulmonary),
        Rule("Density", "opacity", frozenset({"lung", "retrocardiac"}), extrapulmonary | {"round"}),
        *simple("consolidation", "Airspace Disease", "Consolidation", "Pneumonia"),
        Rule("Infiltrate", "interstitial", frozenset({"interstitial"})),
        Rule("Infiltrate", "consolidation", none_of=frozenset({"interstitial"})),
        *simple("atelectasis", "Pulmonary Atelectasis"),
        *simple("effusion", "Pleural Effusion", "Hydropneumothorax", "Hemopneumothorax", "Hemothorax"),
        Rule("Costophrenic Angle", "blunted_angle", frozenset({"blunted", "obscured"})),
        Rule("Sulcus", "blunted_angle", frozenset({"blunted", "obscured"})),
        Rule("Nodule", "nodule", none_of=frozenset({"breast", "ribs"})),
        Rule("Mass", "nodule", none_of=frozenset({"breast", "abdomen"})),
        *simple("granuloma", "Calcified Granuloma", "Granulomatous Disease"),
        Rule("Granuloma", "granuloma", none_of=_VERTEBRAE),
        Rule("Calcinosis", "granuloma", lung, hilar | {"coronary vessels", "pleura"}),
        Rule("Calcinosis", "calcified_nodes", hilar),
        Rule("Calcinosis", "aortic_calcification", vessels),
        *simple("aortic_calcification", "Atherosclerosis"),
        *simple("interstitial", "Markings", "Lung Diseases, Interstitial", "Pulmonary Fibrosis", "Fibrosis"),
        *simple("interstitial", "Cystic Fibrosis", "Bronchiectasis"),
        *simple("edema", "Pulmonary Edema"),
        *simple("congestion", "Pulmonary Congestion", "Heart Failure"),
        Rule("Lung", "hyperinflation", frozenset({"hyperdistention"})),
        Rule("Lung", "hypoinflation", frozenset({"hypoinflation"})),
        Rule("Lung", "interstitial", frozenset({"interstitial"})),
        Rule("Lung", "enlarged_hilum", frozenset({"hilum"})),
        Rule("Pulmonary Artery", "enlarged_hilum", big),
        *simple("enlarged_hilum", "Hypertension, Pulmonary"),
        *simple("emphysema", "Emphysema", "Pulmonary Emphysema", "Pulmonary Disease, Chronic Obstructive"),
        *simple("emphysema", "Bullous Emphysema", "Blister", "Lung, Hyperlucent"),
        *simple("pneumothorax", "Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
        Rule("Diaphragm", "elevated_diaphragm", frozenset({"elevated"})),
        Rule("Diaphragm", "flattened_diaphragm", frozenset({"flattened"})),
        *simple("elevated_diaphragm", "Diaphragmatic Eventration"),
        Rule("Aorta", "tortuous_aorta", big | {"tortuous"}),
        Rule("Aorta, Thoracic", "tortuous_aorta", big | {"tortuous"}),
        *simple("tortuous_aorta", "Aortic Aneurysm"),
        Rule("Mediastinum", "wide_mediastinum", big),
        Rule("Lymph Nodes", "wide_mediastinum", big),
        *simple("scoliosis", "Scoliosis"),
        *(Rule(h, "degenerative_spine", frozenset({"degenerative"})) for h in (
            "Thoracic Vertebrae", "Thoracic vertebrae", "Spine", "Lumbar Vertebrae", "Cervical Vertebrae",
            "Bone and Bones",
        )),
        *(Rule(h, "degenerative_spine", none_of=joints) for h in ("Osteophyte", "Spondylosis", "Arthritis")),
        *simple("degenerative_spine", "Hyperostosis, Diffuse Idiopathic Skeletal"),
        Rule("Deformity", "vertebral_deformity", _VERTEBRAE),
        Rule("Fractures, Bone", "vertebral_deformity", _VERTEBRAE),
        Rule("Deformity", "fracture", frozenset({"ribs", "clavicle"})),
        Rule("Fractures, Bone", "fracture", none_of=_VERTEBRAE | joints),
        Rule("Cicatrix", "scarring", none_of=frozenset({"mediastinum", "abdomen"})),
        Rule("Thickening", "pleural_thickening", frozenset({"pleura"})),
        *simple("hiatal_hernia", "Hernia, Hiatal", "Hernia, Diaphragmatic"),
        Rule("Catheters, Indwelling", "catheter", none_of=frozenset({"thoracic vertebrae", "abdomen"})),
        Rule("Medical Device", "pacemaker", none_of=joints | _VERTEBRAE | {"breast", "aortic valve"}),
        Rule("Implanted Medical Device", "pacemaker",
              none_of=joints | _VERTEBRAE | {"breast", "aortic valve", "mitral valve", "abdomen", "neck"}),
        *simple("tube", "Tube, Inserted"),
        *simple("surgical_material", "Surgical Instruments", "Sutures"),
        *simple("spinal_hardware", "Spinal Fusion"),
        *simple("foreign_body", "Foreign Bodies"),
        *simple("subcutaneous_emphysema", "Subcutaneous Emphysema"),
    ]  # fmt: skip
    by_heading: dict[str, tuple[Rule, ...]] = {}
    for rule in rules:
        by_heading[rule.heading] = (*by_heading.get(rule.heading, ()), rule)
    return by_heading


RULES: Final[Mapping[str, tuple[Rule, ...]]] = _rules()
