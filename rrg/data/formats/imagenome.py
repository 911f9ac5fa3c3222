"""Scene graphs of Chest ImaGenome 1.0.0 (Wu et al., physionet.org/content/chest-imagenome): boxes, findings, sentences.

Layout: `silver_dataset/scene_graph/<dicom_id>_SceneGraph.json`, one file for each frontal image, or the
`scene_graph.zip` in which PhysioNet publishes them; the folder, `silver_dataset` or `scene_graph` itself will do.
A scene graph's parts that are read (format: the data set's own files as read by ttanida/rgrg and others):

- `objects[]`: `bbox_name`; `original_x1 .. original_y2` in pixels of the MIMIC-CXR image (its size is not in the graph:
  `original_width` and `original_height` are the box's) and `x1 .. y2` in a 224 x 224 copy, which was padded to a
  square (the gold set's `..scaling_factors_original_to_224x224.csv` lists top, bottom, left, right and ratio).
- `attributes[]`: `bbox_name`, and lists with one item a sentence: `phrases` and `attributes`, each of the latter a list
  of "category|yes or no|name" such as "anatomicalfinding|yes|lung opacity".

Rules: of their 36 regions the 29 of `REGIONS` are kept. Boxes are cut off at the image's edge; one without area is
left out (the set has some), and so is a second one of a region. A finding holds for a region where any sentence says
"yes" of a name in `_CODES`; names without a clear counterpart (mediastinal displacement, goiter, ...), "no"
and `nlp|yes|abnormal` alone give none. A region without a finding is an empty set.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rrg.data.formats.source import open_zip, safe_path
from rrg.data.images import padded_box
from rrg.data.regions import REGIONS
from rrg.data.study import Box
from rrg.errors import UserError

Corners = tuple[float, float, float, float]

_COPY_SIDE: Final = 224
_CORNERS: Final = ("x1", "y1", "x2", "y2")
_FOLDERS: Final = ("silver_dataset/scene_graph", "scene_graph")

# Attribute name -> codes of FINDINGS, in line with what `rrg.data.lexicon` reads from the same words.
_CODES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "lung opacity": ("opacity",),
        "airspace opacity": ("opacity",),
        "consolidation": ("consolidation",),
        "infiltration": ("consolidation",),
        "pneumonia": ("consolidation",),
        "atelectasis": ("atelectasis",),
        "linear/patchy atelectasis": ("atelectasis",),
        "lobar/segmental collapse": ("atelectasis",),
        "pulmonary edema/hazy opacity": ("edema",),
        "vascular congestion": ("congestion",),
        "vascular redistribution": ("congestion",),
        "fluid overload/heart failure": ("congestion",),
        "increased reticular markings/ild pattern": ("interstitial",),
        "interstitial lung disease": ("interstitial",),
        "bronchiectasis": ("interstitial",),
        "pleural effusion": ("effusion",),
        "costophrenic angle blunting": ("blunted_angle",),
        "pleural/parenchymal scarring": ("scarring",),
        "enlarged cardiac silhouette": ("cardiomegaly",),
        "mediastinal widening": ("wide_mediastinum",),
        "superior mediastinal mass/enlargement": ("wide_mediastinum",),
        "enlarged hilum": ("enlarged_hilum",),
        "tortuous aorta": ("tortuous_aorta",),
        "vascular calcification": ("aortic_calcification",),
        "pneumothorax": ("pneumothorax",),
        "hydropneumothorax": ("effusion", "pneumothorax"),
        "lung lesion": ("nodule",),
        "mass/nodule (not otherwise specified)": ("nodule",),
        "multiple masses/nodules": ("nodule",),
        "calcified nodule": ("granuloma",),
        "granulomatous disease": ("granuloma",),
        "rib fracture": ("fracture",),
        "clavicle fracture": ("fracture",),
        "spinal fracture": ("vertebral_deformity",),
        "hyperaeration": ("hyperinflation",),
        "low lung volumes": ("hypoinflation",),
        "cyst/bullae": ("emphysema",),
        "copd/emphysema": ("emphysema",),
        "elevated hemidiaphragm": ("elevated_diaphragm",),
        "diaphragmatic eventration (benign)": ("elevated_diaphragm",),
        "subcutaneous air": ("subcutaneous_emphysema",),
        "hernia": ("hiatal_hernia",),
        "scoliosis": ("scoliosis",),
        "spinal degenerative changes": ("degenerative_spine",),
        "chest tube": ("tube",),
        "mediastinal drain": ("tube",),
        "pigtail catheter": ("tube",),
        "endotracheal tube": ("tube",),
        "tracheostomy tube": ("tube",),
        "enteric tube": ("tube",),
        "picc": ("catheter",),
        "ij line": ("catheter",),
        "chest port": ("catheter",),
        "subclavian line": ("catheter",),
        "swan-ganz catheter": ("catheter",),
        "sternotomy wires": ("surgical_material",),
        "cabg grafts": ("surgical_material",),
        "cardiac pacer and wires": ("pacemaker",),
    }
)


class SceneGraphError(ValueError):
    """A scene graph can't be read."""


@dataclass(frozen=True)
class Regions:
    """What a scene graph tells of an image.

    `findings` hold anywhere, regions that we don't have included; `by_region` has all of `REGIONS` as keys. `faulty`
    counts boxes that were left out.
    """

    boxes: Mapping[str, Box]
    findings: frozenset[str]
    by_region: Mapping[str, frozenset[str]]
    sentences: Mapping[str, tuple[str, ...]]
    faulty: int


@dataclass(frozen=True, eq=False, slots=True)
class PackedBoxes(Mapping[str, Box]):
    """Boxes by region in a tenth of a dictionary's memory: a data set has six million of them."""

    regions: bytes  # indices into REGIONS
    corners: array[float]  # four to a box

    def __getitem__(self, region: str) -> Box:
        at = self.regions.find(REGIONS.index(region)) if region in REGIONS else -1
        if at < 0:
            raise KeyError(region)
        return Box(*self.corners[4 * at : 4 * at + 4])

    def __iter__(self) -> Iterator[str]:
        return (REGIONS[index] for index in self.regions)

    def __len__(self) -> int:
        return len(self.regions)


# The text of an image's scene graph by dicom id; None where there is none.
Graphs = Callable[[str], str | None]


@contextmanager
def open_graphs(root: Path) -> Iterator[Graphs]:
    """The scene graphs under `root`; `UserError` where it holds neither the folder nor the zip."""
    packed = [root, *(root / f"{name}.zip" for name in _FOLDERS)]
    archive = next((path for path in packed if path.suffix == ".zip" and path.is_file()), None)
    if archive is not None:
        with open_zip(archive) as opened:
            members = {name.rpartition("/")[2]: name for name in opened.namelist()}
            yield lambda dicom: _member(opened, members.get(file_name(dicom)))
        return
    # Unpacking the zip in its place makes a folder within a folder.
    nested = [root / name / inner for name in _FOLDERS for inner in ("scene_graph", ".")]
    folder = next((path for path in nested if path.is_dir()), root)
    if not folder.is_dir() or (folder == root and next(folder.glob(file_name("*")), None) is None):
        raise UserError(f"data.imagenome={root} holds neither {_FOLDERS[0]}/ nor {_FOLDERS[0]}.zip of Chest ImaGenome")
    yield lambda dicom: _file(folder, dicom)


def file_name(dicom: str) -> str:
    """The name of an image's scene graph."""
    return f"{dicom}_SceneGraph.json"


def _member(archive: zipfile.ZipFile, name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return archive.read(name).decode("utf-8")
    except (ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise SceneGraphError(f"can't be read ({error})") from error


def _file(folder: Path, dicom: str) -> str | None:
    try:
        return safe_path(folder, file_name(dicom)).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise SceneGraphError(f"can't be read ({error})") from error


def parse(text: str, size: tuple[int, int] | None) -> Regions:
    """The content of a scene graph; `size` is width and height of its image, None: boxes by the 224 x 224 copy.

    Raises `SceneGraphError` where the text is not a scene graph.
    """
    try:
        graph = json.loads(text)
        objects = [(str(item["bbox_name"]), item) for item in graph["objects"]]
        attributes = [(str(item["bbox_name"]), item["attributes"], item["phrases"]) for item in graph["attributes"]]
        boxes = [(region, _box(item, size)) for region, item in objects if region in REGIONS]
        codes = [(region, code) for region, lists, _ in attributes for code in _codes(lists)]
        sentences = [(region, str(phrase).strip()) for region, _, phrases in attributes for phrase in phrases]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneGraphError(f"is no scene graph ({type(error).__name__}: {error})") from error
    found: dict[str, Corners] = {}
    for region, box in boxes:
        if box is not None:
            found.setdefault(region, box)
    # A sentence stands there once for each region that it speaks of, often twice: one string for all.
    one = {sentence: sentence for _, sentence in sentences}
    spoken = dict.fromkeys(region for region, _ in sentences if region in REGIONS)
    return Regions(
        boxes=PackedBoxes(bytes(map(REGIONS.index, found)), array("d", chain.from_iterable(found.values()))),
        findings=_set(tuple(sorted({code for _, code in codes}))),
        by_region={name: _set(tuple(sorted({c for region, c in codes if region == name}))) for name in REGIONS},
        sentences={name: tuple({one[s]: 0 for region, s in sentences if region == name}) for name in spoken},
        faulty=sum(box is None for _, box in boxes),
    )


@lru_cache(1 << 16)
def _set(codes: tuple[str, ...]) -> frozenset[str]:
    """One set for all equal ones; nearly all are empty."""
    return frozenset(codes)


def _codes(sentences: Any) -> Iterator[str]:
    for labels in sentences:
        for label in labels:
            _category, value, name = label.split("|", 2)
            if value == "yes":
                yield from _CODES.get(name, ())


def _box(item: Mapping[str, Any], size: tuple[int, int] | None) -> Corners | None:
    """The corners as fractions of the padded square, None where it has no area within the image."""
    prefix = "original_" if size and item.get("original_x1") is not None else ""
    width, height = size if size and prefix else (_COPY_SIDE, _COPY_SIDE)
    x0, y0, x1, y1 = (float(item[prefix + name]) for name in _CORNERS)
    x0, x1 = max(x0, 0.0), min(x1, float(width))
    y0, y1 = max(y0, 0.0), min(y1, float(height))
    if not (x0 < x1 and y0 < y1):
        return None
    return padded_box((x0, y0, x1, y1), width, height)
