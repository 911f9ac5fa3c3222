"""Where things lie in one rendered chest: a patient's geometry, drawn from the study id and bent by the findings.

Coordinates are fractions of the square image, x to the right and y down; the patient's right is at small x. The
geometry alone decides the 29 boxes, so they are exact. Findings that change a shape (heart size, lung volumes,
diaphragms, aorta, spine, mediastinum) act here; those that add something to a shape are drawn in `lesions`/`devices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rrg.data.findings import Sign
from rrg.data.regions import SIDES, Side
from rrg.data.study import Box

Array = npt.NDArray[np.float32]
# Direction of a side in the image: the patient's right lies to the left.
DIRECTION: Final[dict[Side, float]] = {"right": -1.0, "left": 1.0}


@dataclass(frozen=True)
class LungShape:
    """One lung: apex, dome of the diaphragm, bottom of the costophrenic angle, and both walls at any height."""

    side: Side
    apex_y: float
    dome_y: float
    angle_y: float
    inner_x: float
    outer_x: float
    apex_x: float

    def outer(self, y: npt.ArrayLike) -> Array:
        """x of the rib side at heights y: narrow at the apex, widest above the angle."""
        t = np.clip((np.asarray(y, np.float32) - self.apex_y) / (self.angle_y - self.apex_y), 0.0, 1.0)
        rise = 1.0 - np.minimum(t / 0.78, 1.0)
        width = (0.62 * (1.0 - rise**2.3) + 0.38 * np.sqrt(1.0 - rise**6)) * (1.0 - 0.16 * np.maximum(t - 0.78, 0.0))
        return np.asarray(self.apex_x + (self.outer_x - self.apex_x) * width, np.float32)

    def inner(self, y: npt.ArrayLike) -> Array:
        """x of the mediastinal side at heights y (the heart covers its lower part)."""
        t = np.clip((np.asarray(y, np.float32) - self.apex_y) / (self.angle_y - self.apex_y), 0.0, 1.0)
        bend = np.sqrt(1.0 - (1.0 - np.minimum(t / 0.10, 1.0)) ** 2)
        return np.asarray(self.apex_x + (self.inner_x - self.apex_x) * bend, np.float32)

    def floor(self, x: npt.ArrayLike) -> Array:
        """y of the diaphragm at positions x: an arc that falls off to the angle at the side and a little inside."""
        middle = self.inner_x + 0.42 * (self.outer_x - self.inner_x)
        u = (np.asarray(x, np.float32) - middle) / (self.outer_x - middle)
        outside = (self.angle_y - self.dome_y) * np.clip(u, 0.0, 1.0) ** 2.4
        inside = 0.25 * (self.angle_y - self.dome_y) * np.clip(-u, 0.0, 1.0) ** 2
        return np.asarray(self.dome_y + outside + inside, np.float32)

    def at(self, across: float, down: float) -> tuple[float, float]:
        """The point `across` (0 mediastinal wall, 1 ribs) and `down` (0 apex, 1 diaphragm) of the lung."""
        y = self.apex_y + down * (self.dome_y - self.apex_y)
        inner, outer = float(self.inner(y)), float(self.outer(y))
        return inner + across * (outer - inner), y

    def contour(self) -> list[tuple[float, float]]:
        """The outline as a polygon."""
        y = np.linspace(self.apex_y, self.angle_y, 40, dtype=np.float32)
        outer_x = self.outer(y)
        x = np.linspace(float(outer_x[-1]), self.inner_x, 24, dtype=np.float32)
        floor_y = self.floor(x)
        up = np.linspace(float(floor_y[-1]), self.apex_y, 16, dtype=np.float32)
        xs = np.concatenate([outer_x, x, self.inner(up)])
        ys = np.concatenate([y, floor_y, up])
        return list(zip(xs.tolist(), ys.tolist(), strict=True))


@dataclass(frozen=True)
class Anatomy:
    """One patient. Lengths are fractions of the image; `spine_curve` is the amplitude of a scoliosis (+ to the
    patient's right)."""

    center_x: float
    lungs: dict[Side, LungShape]
    half_width: float
    heart_right: float
    heart_left: float
    heart_top: float
    heart_bottom: float
    carina_y: float
    knob_radius: float
    aorta_bend: float
    upper_width: float
    spine_curve: float
    body_width: float
    clavicle_y: float

    @property
    def knob(self) -> tuple[float, float]:
        """Centre of the aortic knob."""
        return self.center_x + 0.5 * self.upper_width + 0.35 * self.knob_radius, self.carina_y - 0.055

    def spine_x(self, y: npt.ArrayLike) -> Array:
        """x of the spine's midline at heights y."""
        ys = np.asarray(y, np.float32)
        wave = np.sin((ys - 0.12) / 0.62 * np.pi) * (ys < 0.74) - 0.5 * np.sin((ys - 0.74) / 0.5 * np.pi) * (ys >= 0.74)
        return np.asarray(self.center_x - self.spine_curve * wave, np.float32)

    def boxes(self) -> dict[str, Box]:
        """The boxes of the 29 regions."""
        raw: dict[str, tuple[float, float, float, float]] = {}
        for side in SIDES:
            raw |= {f"{side} {name}": box for name, box in _lung_boxes(self.lungs[side], self.center_x).items()}
            sign = DIRECTION[side]
            raw[f"{side} clavicle"] = _span(
                self.center_x + sign * 0.03, self.center_x + sign * 0.34, self.clavicle_y - 0.06, self.clavicle_y + 0.04
            )
        cx, top, half = self.center_x, min(lung.apex_y for lung in self.lungs.values()), 0.5 * self.upper_width
        knob_x, knob_y = self.knob
        radius = self.knob_radius
        bottom = max(lung.dome_y for lung in self.lungs.values())
        atrium_top = self.heart_top + 0.42 * (self.heart_bottom - self.heart_top)
        spine = self.spine_x(np.linspace(0.02, 0.98, 33, dtype=np.float32))
        raw |= {
            "trachea": (cx - 0.035, 0.02, cx + 0.035, self.carina_y),
            "spine": (float(spine.min()) - 0.055, 0.02, float(spine.max()) + 0.055, 0.98),
            "aortic arch": (knob_x - 1.3 * radius, knob_y - 1.2 * radius, knob_x + 1.2 * radius, knob_y + 1.2 * radius),
            "mediastinum": (self.heart_right, top + 0.02, self.heart_left, self.heart_bottom),
            "upper mediastinum": (cx - half - 0.02, top + 0.02, knob_x + radius, self.carina_y),
            "svc": (cx - half - 0.015, self.carina_y - 0.14, cx - 0.2 * half, atrium_top),
            "cardiac silhouette": (self.heart_right, self.heart_top, self.heart_left, self.heart_bottom),
            "cavoatrial junction": (cx - half - 0.04, atrium_top - 0.05, cx - 0.01, atrium_top + 0.04),
            "right atrium": (self.heart_right, atrium_top, cx - 0.01, self.heart_bottom),
            "carina": (cx - 0.05, self.carina_y - 0.03, cx + 0.05, self.carina_y + 0.045),
            "abdomen": (cx - self.half_width, bottom, cx + self.half_width, 1.0),
        }
        return {name: _clip(*corners) for name, corners in raw.items()}


def _lung_boxes(lung: LungShape, center_x: float) -> dict[str, tuple[float, float, float, float]]:
    inner, outer, top, dome, bottom = lung.inner_x, lung.outer_x, lung.apex_y, lung.dome_y, lung.angle_y
    third = (dome - top) / 3
    hilum_y = top + 0.5 * (dome - top)
    width = outer - inner
    return {
        "lung": _span(inner, outer, top, bottom),
        "upper lung zone": _span(inner, outer, top, top + third),
        "mid lung zone": _span(inner, outer, top + third, top + 2 * third),
        "lower lung zone": _span(inner, outer, top + 2 * third, bottom),
        "hilar structures": _span(center_x + 0.2 * (inner - center_x), inner + 0.36 * width, hilum_y - 0.09,
                                  hilum_y + 0.1),
        "apical zone": _span(inner, inner + 0.82 * width, top, top + 0.45 * third),
        "costophrenic angle": _span(outer - 0.3 * width, outer, bottom - 0.12, bottom + 0.01),
        "hemidiaphragm": _span(inner, outer, dome - 0.03, bottom + 0.01),
    }  # fmt: skip


def _span(xa: float, xb: float, y0: float, y1: float) -> tuple[float, float, float, float]:
    return min(xa, xb), y0, max(xa, xb), y1


def _clip(x0: float, y0: float, x1: float, y1: float) -> Box:
    """The corners inside of the image, never empty."""
    x0, y0 = min(max(x0, 0.0), 0.97), min(max(y0, 0.0), 0.97)
    x1, y1 = min(max(x1, x0 + 0.03), 1.0), min(max(y1, y0 + 0.03), 1.0)
    return Box(float(x0), float(y0), float(x1), float(y1))


def worst(signs: Sequence[Sign], finding: str, side: Side | None = None) -> float:
    """The highest severity of `finding` (on `side`), 0 if it is absent."""
    return max((s.severity for s in signs if s.finding == finding and (side is None or side in s.sides)), default=0.0)


def sample_anatomy(rng: np.random.Generator, signs: Sequence[Sign]) -> Anatomy:
    """A patient with the shapes that `signs` ask for; equal generator states give equal patients."""
    # One draw for everything, so that a finding never changes the rest of the patient.
    u = rng.uniform(-1.0, 1.0, 16)
    center = 0.5 + 0.015 * u[0]
    hyper, hypo = worst(signs, "hyperinflation"), worst(signs, "hypoinflation")
    half = 0.36 + 0.03 * u[1] + 0.02 * (hyper > 0)
    apex = 0.125 + 0.025 * u[2]
    dome = 0.745 + 0.025 * u[3] + (0.05 + 0.04 * hyper if hyper else 0.0) - (0.08 + 0.06 * hypo if hypo else 0.0)
    lungs = {side: _lung(side, center, half, apex, dome, u, signs) for side in SIDES}
    bottom = min(lung.dome_y for lung in lungs.values()) + 0.06
    # The cardiothoracic ratio: normal up to 0.5.
    big = worst(signs, "cardiomegaly")
    ratio = 0.535 + 0.16 * big + 0.01 * u[6] if big else 0.43 + 0.025 * u[6]
    heart_width = 2 * half * ratio
    height = 0.30 + 0.01 * u[7] + 0.08 * big
    tortuous = worst(signs, "tortuous_aorta")
    wide = worst(signs, "wide_mediastinum")
    curve = 0.0
    for sign in signs:
        if sign.finding == "scoliosis":
            curve = (0.042 + 0.045 * sign.severity) * (-1.0 if sign.sides == ("left",) else 1.0)
    return Anatomy(
        center_x=center,
        lungs=lungs,
        half_width=half,
        heart_right=center - (0.30 + 0.02 * u[8]) * heart_width,
        heart_left=center + (0.70 - 0.02 * u[8]) * heart_width,
        heart_top=bottom - height,
        heart_bottom=bottom,
        carina_y=apex + 0.225 + 0.01 * u[9],
        knob_radius=0.036 + 0.004 * u[10] + (0.014 + 0.016 * tortuous if tortuous else 0.0),
        aorta_bend=0.03 + 0.04 * tortuous if tortuous else 0.0,
        upper_width=0.125 + 0.01 * u[11] + (0.05 + 0.05 * wide if wide else 0.0),
        spine_curve=curve,
        body_width=half + 0.085 + 0.025 * u[12],
        clavicle_y=apex + 0.055 + 0.012 * u[13],
    )


def _lung(
    side: Side, center: float, half: float, apex: float, dome: float, u: npt.NDArray[np.float64], signs: Sequence[Sign]
) -> LungShape:
    direction = DIRECTION[side]
    index = SIDES.index(side)
    # The left dome usually lies a little lower.
    dome_y = dome + (0.022 if side == "left" else 0.0) + 0.008 * u[4 + index]
    depth = 0.105 + 0.01 * u[14]
    elevated = worst(signs, "elevated_diaphragm", side)
    if elevated:
        dome_y -= 0.07 + 0.07 * elevated
        depth += 0.05 + 0.05 * elevated
    if worst(signs, "flattened_diaphragm", side):
        depth = 0.03
        dome_y += 0.035
    elif worst(signs, "hyperinflation"):
        depth = 0.065
    return LungShape(
        side=side,
        apex_y=apex + 0.006 * u[5 - index],
        dome_y=dome_y,
        angle_y=min(dome_y + depth, 0.97),
        inner_x=center + direction * 0.055,
        outer_x=center + direction * half,
        apex_x=center + direction * (0.115 + 0.01 * u[15]),
    )
