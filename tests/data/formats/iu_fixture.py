"""Small data sets in the official layouts of Open-i and Kaggle, with made-up reports."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

REPORTS_HEADER = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", size, 77).save(path)
    return path


def xml(number: int, findings: str = "Heart is large.", images: Sequence[str] = (), mesh: Sequence[str] = ()) -> bytes:
    """One file of ecgen-radiology, cut down to what is read; `findings` may hold markup."""
    parents = "".join(f'<parentImage id="{name}"><caption>PA and lateral</caption></parentImage>' for name in images)
    codes = "".join(f"<major>{code}</major>" for code in mesh)
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
 <AbstractText Label="COMPARISON">None.</AbstractText>
 <AbstractText Label="INDICATION">Cough &amp; fever</AbstractText>
 <AbstractText Label="FINDINGS">{findings}</AbstractText>
 <AbstractText Label="IMPRESSION">1. Big heart.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{codes}<automatic>Heart</automatic></MeSH>{parents}</eCitation>"""
    return text.encode()


def openi_root(root: Path, images: str = "NLMCXR_png") -> Path:
    """Report 2384 (in R2Gen's train split) with two images, 12 (not in its split), 13 without any image."""
    names = ("CXR2384_IM-0942-1001", "CXR2384_IM-0942-3001")
    reports = root / "ecgen-radiology"
    reports.mkdir(parents=True)
    (reports / "2384.xml").write_bytes(xml(2384, images=names, mesh=("Cardiomegaly/mild",)))
    (reports / "7777.xml").write_bytes(xml(7777, images=("CXR7777_IM-0001",), mesh=("No Indexing",)))
    (reports / "8888.xml").write_bytes(xml(8888))
    for name in (*names, "CXR7777_IM-0001"):
        picture(root / images / f"{name}.png")
    return root


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def kaggle_root(root: Path, images: str = "images/images_normalized") -> Path:
    """Reports 2384 (lateral listed first) and 7777."""
    write_csv(
        root / "indiana_reports.csv",
        REPORTS_HEADER,
        [
            ("2384", "Cardiomegaly/mild;Spine/degenerative", "Cardiomegaly;Spine", "Xray Chest PA and Lateral",
             "Cough", "None.", "Heart is large,\nlungs clear.", "Big heart."),
            ("7777", "normal", "normal", "PA", "", "", "", "Normal chest."),
        ],
    )  # fmt: skip
    files = [("2384", "2384_IM-0942-3001.dcm.png", "Lateral"), ("2384", "2384_IM-0942-1001.dcm.png", "Frontal"),
             ("7777", "7777_IM-0001.dcm.png", "Frontal")]  # fmt: skip
    write_csv(root / "indiana_projections.csv", ("uid", "filename", "projection"), files)
    for _, name, _ in files:
        picture(root / images / name)
    return root
