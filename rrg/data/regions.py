"""The 29 anatomical regions of Chest ImaGenome; their descriptions lie in `regions.yaml`, which names the source.

"Right" and "left" are the patient's: the patient's right is on the left of the image.

Contract: `REGIONS` never changes order, since models store region queries by index.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import yaml

from rrg.errors import UserError

Side = Literal["right", "left"]
SIDES: Final[tuple[Side, ...]] = ("right", "left")

_LUNG_PARTS: Final = (
    "lung",
    "upper lung zone",
    "mid lung zone",
    "lower lung zone",
    "hilar structures",
    "apical zone",
    "costophrenic angle",
    "hemidiaphragm",
)
_CENTRAL: Final = (
    "trachea",
    "spine",
    "right clavicle",
    "left clavicle",
    "aortic arch",
    "mediastinum",
    "upper mediastinum",
    "svc",
    "cardiac silhouette",
    "cavoatrial junction",
    "right atrium",
    "carina",
    "abdomen",
)
REGIONS: Final[tuple[str, ...]] = (*(f"{side} {part}" for side in SIDES for part in _LUNG_PARTS), *_CENTRAL)


def load_descriptions(path: str | None = None) -> Mapping[str, str]:
    """What each region is, by name in the order of `REGIONS`, from a YAML file (null: the one of this package).

    Raises `UserError` unless the file has a text for each of `REGIONS` and for nothing else.
    """
    name = path or "regions.yaml"
    way_out = "model.region_descriptions takes a YAML file like rrg/data/regions.yaml, of the same 29 names"
    try:
        text = Path(path).read_text("utf-8") if path else (files("rrg.data") / name).read_text("utf-8")
        loaded = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{name} can't be read ({error}); {way_out}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{name} holds no names with descriptions; {way_out}")
    unknown = [str(region) for region in loaded if region not in REGIONS]
    if unknown:
        raise UserError(f"{name}: {', '.join(unknown)}: no region of ours; {way_out}")
    for region in REGIONS:
        if region not in loaded:
            raise UserError(f"{name}: {region} is missing; {way_out}")
        if not isinstance(loaded[region], str) or not loaded[region].strip():
            raise UserError(f"{name}: {region} has no description, but {loaded[region]!r}; {way_out}")
    return {region: loaded[region].strip() for region in REGIONS}
