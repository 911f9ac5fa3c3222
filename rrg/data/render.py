"""Rendered frontal X-rays: a plausible chest with the findings of a report drawn where its codes say.

Synthetic by construction: a patient is drawn from the study id (SHA-256, so the same in every process), then each
`Sign`. Nothing that isn't coded is drawn. `VERSION` goes up when any pixel changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rrg.data.anatomy import Anatomy, sample_anatomy
from rrg.data.chest import expose, paint_chest
from rrg.data.devices import draw_device
from rrg.data.findings import Sign
from rrg.data.lesions import draw_lesion
from rrg.data.study import Box

VERSION: Final = "v4"


def _generator(study_id: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{study_id}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def anatomy_of(study_id: str, signs: Sequence[Sign]) -> Anatomy:
    """The patient of a study."""
    return sample_anatomy(_generator(study_id, "anatomy"), signs)


def boxes_of(study_id: str, signs: Sequence[Sign]) -> dict[str, Box]:
    """Exact boxes of the 29 regions in the study's picture, without drawing it."""
    return anatomy_of(study_id, signs).boxes()


def render(study_id: str, signs: Sequence[Sign]) -> npt.NDArray[np.uint8]:
    """The picture [224, 224], 8-bit grey; the same for the same arguments, on any machine."""
    anatomy = anatomy_of(study_id, signs)
    chest = paint_chest(anatomy, signs, _generator(study_id, "chest"))
    for index, sign in enumerate(signs):
        draw_lesion(chest, sign, _generator(study_id, f"sign {index}"))
    for index, sign in enumerate(signs):
        draw_device(chest, sign, _generator(study_id, f"device {index}"))
    return expose(chest, _generator(study_id, "exposure"))
