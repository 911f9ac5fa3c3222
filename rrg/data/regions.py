"""The 29 anatomical regions of Chest ImaGenome, with a short description of each.

Names: Wu et al., "Chest ImaGenome Dataset for Clinical Reasoning", NeurIPS Datasets and Benchmarks 2021 (the regions
with a bounding box; the same 29, in the same wording, as in RGRG, Tanida et al., CVPR 2023). The descriptions are
ours. "Right" and "left" are the patient's: the patient's right is on the left of the image.

Contract: `REGIONS` never changes order, since models store region queries by index.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

Side = Literal["right", "left"]
SIDES: Final[tuple[Side, ...]] = ("right", "left")

_LUNG_PARTS: Final = (
    ("lung", "the whole {0} lung field: aeration, opacities, nodules, pneumothorax"),
    ("upper lung zone", "{0} lung above the hilum: upper lobe opacities, nodules, scarring"),
    ("mid lung zone", "{0} lung at the level of the hilum: {1} opacities and nodules"),
    ("lower lung zone", "{0} lung base below the hilum: basilar atelectasis, infiltrate, consolidation"),
    ("hilar structures", "{0} pulmonary artery and bronchi: enlargement, congestion, calcified lymph nodes"),
    ("apical zone", "{0} lung above the clavicle: pneumothorax, apical scarring, pleural thickening"),
    ("costophrenic angle", "angle between {0} chest wall and diaphragm: pleural effusion, blunting"),
    ("hemidiaphragm", "dome under the {0} lung: elevated, flattened, eventration, hernia"),
)

_CENTRAL: Final = (
    ("trachea", "midline airway from neck to carina: deviation, endotracheal tube"),
    ("spine", "thoracic vertebrae: degenerative changes, osteophytes, scoliosis, compression fracture"),
    ("right clavicle", "right collar bone: fracture, dislocation"),
    ("left clavicle", "left collar bone: fracture, dislocation"),
    ("aortic arch", "left upper border of the mediastinum: tortuous, ectatic, calcified aorta"),
    ("mediastinum", "space between the lungs: width, contour, lymph nodes, sternotomy wires"),
    ("upper mediastinum", "mediastinum above the heart: width, paratracheal lines, great vessels"),
    ("svc", "superior vena cava along the right upper mediastinum: central venous catheter, port"),
    ("cardiac silhouette", "outline of the heart: size, cardiomegaly, pacemaker leads"),
    ("cavoatrial junction", "where the superior vena cava meets the right atrium: catheter tip"),
    ("right atrium", "right border of the heart: enlargement, catheter or lead tip"),
    ("carina", "where the trachea divides into the main bronchi: tube position, lymph nodes"),
    ("abdomen", "below the diaphragm: stomach bubble, surgical clips, free air, enteric tube"),
)

_LOBE: Final[Mapping[Side, str]] = {"right": "middle lobe", "left": "lingular"}


def _describe() -> dict[str, str]:
    lungs = {f"{side} {part}": text.format(side, _LOBE[side]) for side in SIDES for part, text in _LUNG_PARTS}
    return lungs | dict(_CENTRAL)


DESCRIPTIONS: Final[Mapping[str, str]] = MappingProxyType(_describe())
REGIONS: Final[tuple[str, ...]] = tuple(DESCRIPTIONS)
