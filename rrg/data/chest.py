"""The healthy parts of a rendered chest: soft tissue, lungs with vessels, mediastinum, heart, bones; and exposure.

`paint_chest` gives a `Chest`, on which `lesions` and `devices` draw; `expose` turns it into film.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rrg.data.anatomy import DIRECTION, Anatomy, worst
from rrg.data.canvas import SIZE, Array, Layer, Point, blob, curve, grid, lighten, polygon_mask, toward
from rrg.data.findings import Sign
from rrg.data.regions import SIDES, Side

LUNG_LEVEL = 0.17
VERTEBRAE = tuple(0.075 + 0.0625 * i for i in range(15))


@dataclass
class Chest:
    """A picture in the making: brightness [SIZE, SIZE] in about [0, 1], and the masks that lesions are cut to."""

    anatomy: Anatomy
    pixels: Array
    lungs: dict[Side, Array]

    @property
    def both_lungs(self) -> Array:
        return np.maximum(self.lungs["right"], self.lungs["left"])


def paint_chest(anatomy: Anatomy, signs: Sequence[Sign], rng: np.random.Generator) -> Chest:
    """Everything but lesions and devices. Findings that change healthy parts (emphysema, congestion, ...) act here."""
    pixels = _body(anatomy)
    lungs = {side: polygon_mask(anatomy.lungs[side].contour(), blur=0.9) for side in SIDES}
    chest = Chest(anatomy, pixels, lungs)
    _lung_fields(chest, worst(signs, "emphysema"))
    _breasts(chest, rng)
    _stomach(chest, rng)
    _vessels(chest, signs, rng)
    _hila(chest, signs, rng)
    _mediastinum(chest)
    _spine(chest, signs, rng)
    _ribs(chest)
    _shoulders(chest, signs)
    return chest


def _body(anatomy: Anatomy) -> Array:
    """Soft tissue: neck, shoulders, flanks; denser below the diaphragm, thinner towards the skin."""
    cx, w = anatomy.center_x, anatomy.body_width
    right_half = [(cx - 0.10, -0.05), (cx - 0.115, 0.05), (cx - 0.30, 0.125), (cx - 0.47, 0.19), (cx - 0.56, 0.32),
                  (cx - w - 0.015, 0.40), (cx - w, 0.62), (cx - w + 0.005, 0.85), (cx - w, 1.05)]  # fmt: skip
    outline = right_half + [(2 * cx - x, y) for x, y in reversed(right_half)]
    mask = polygon_mask(outline, blur=2.0)
    xs, ys = grid()
    across = np.minimum(np.abs(xs - cx) / w, 1.15)
    level = 0.60 - 0.16 * across**2 + 0.10 / (1.0 + np.exp(-(ys - 0.78) / 0.035)) - 0.06 * (ys < 0.14)
    return np.asarray(0.015 + mask * level, np.float32)


def _lung_fields(chest: Chest, emphysema: float) -> None:
    """Air: dark, a little lighter at the base (breast, more tissue); emphysema is darker, most in the upper lung."""
    _, ys = grid()
    level = LUNG_LEVEL + 0.07 * np.clip((ys - 0.3) / 0.45, 0.0, 1.0)
    if emphysema:
        level = level - (0.05 + 0.05 * emphysema) * (1.0 - 0.5 * np.clip((ys - 0.3) / 0.4, 0.0, 1.0))
    toward(chest.pixels, 0.0, 0.97 * chest.both_lungs)
    chest.pixels += level.astype(np.float32) * chest.both_lungs


def _breasts(chest: Chest, rng: np.random.Generator) -> None:
    """Soft shadows over the lower lungs, from none to heavy: a matter of the patient, not a finding."""
    weight = max(float(rng.uniform(-0.5, 1.0)), 0.0)
    for side in SIDES:
        x, y = chest.anatomy.lungs[side].at(0.62, 0.80)
        window, values = blob(x, y, 0.145, 0.115, power=3.0)
        lighten(chest.pixels[window], 0.11 * weight, values)


def _stomach(chest: Chest, rng: np.random.Generator) -> None:
    """The gastric air bubble under the left dome."""
    lung = chest.anatomy.lungs["left"]
    x = lung.inner_x + 0.45 * (lung.outer_x - lung.inner_x) + 0.02 * rng.uniform(-1, 1)
    window, values = blob(x, lung.dome_y + 0.085, 0.06 + 0.015 * rng.uniform(), 0.032, power=4.0)
    toward(chest.pixels[window], 0.40, (0.55 + 0.25 * rng.uniform()) * values * (1 - chest.lungs["left"][window]))


def _hilum(chest: Chest, side: Side) -> Point:
    lung = chest.anatomy.lungs[side]
    return lung.at(0.09, 0.50 if side == "right" else 0.46)


def _vessels(chest: Chest, signs: Sequence[Sign], rng: np.random.Generator) -> None:
    """Branching vessels that taper from the hilum; congestion and edema widen those of the upper lung."""
    layer = Layer()
    wide = max(worst(signs, "congestion"), 0.8 * worst(signs, "edema"))
    loss = worst(signs, "emphysema")
    for side in SIDES:
        hilum = _hilum(chest, side)
        for angle in np.linspace(-80, 82, 9) + rng.uniform(-11, 11, 9):
            width = 2.2 + (0.8 + 1.4 * wide if wide else 0.0) * (1.0 if angle < 10 else 0.5)
            length = (0.26 - 0.06 * abs(angle) / 90) * rng.uniform(0.7, 1.15) * (1.0 - 0.45 * loss)
            _branch(layer, rng, hilum, np.deg2rad(angle), DIRECTION[side], length, width, depth=3)
    lighten(chest.pixels, 0.22 + 0.14 * wide, layer.mask(0.7) * chest.both_lungs)


def _branch(
    layer: Layer, rng: np.random.Generator, start: Point, angle: float, direction: float, length: float, width: float,
    depth: int,
) -> None:  # fmt: skip
    x, y = start
    step = length / 2.2
    end = (x + direction * step * float(np.cos(angle)), y + step * float(np.sin(angle)))
    layer.line([start, end], width, value=0.35 + 0.2 * depth)
    if depth > 1:
        for turn in (-0.33, 0.33):
            bend = angle + turn + 0.3 * rng.uniform(-1, 1)
            _branch(layer, rng, end, bend, direction, length * 0.62, width * 0.68, depth - 1)


def _hila(chest: Chest, signs: Sequence[Sign], rng: np.random.Generator) -> None:
    """Pulmonary arteries; large when enlarged, large and hazy when congested."""
    for side in SIDES:
        big = worst(signs, "enlarged_hilum", side)
        hazy = max(worst(signs, "congestion", side), worst(signs, "edema", side))
        x, y = _hilum(chest, side)
        scale = 1.0 + (0.7 + 0.5 * big if big else 0.0) + 0.35 * hazy
        strength = 0.30 + (0.22 if big else 0.0) + 0.10 * hazy
        for dx, dy, rx, ry in ((0.0, -0.02, 0.020, 0.030), (0.016, 0.03, 0.016, 0.036)):
            jitter = 0.004 * rng.uniform(-1, 1)
            window, values = blob(x + DIRECTION[side] * dx * scale + jitter, y + dy * scale, rx * scale, ry * scale)
            lighten(chest.pixels[window], strength, values)


def heart_outline(anatomy: Anatomy) -> list[Point]:
    """The heart: right atrium, apex to the left, waist below the aortic knob."""
    a, cx = anatomy, anatomy.center_x
    top, bottom = a.heart_top, a.heart_bottom
    height, left = bottom - top, a.heart_left - cx
    return curve([
        (cx - 0.45 * a.upper_width, top), (a.heart_right + 0.012, top + 0.45 * height),
        (a.heart_right, top + 0.68 * height), (a.heart_right + 0.03, top + 0.95 * height),
        (cx, bottom + 0.01), (cx + 0.6 * left, bottom + 0.012), (a.heart_left - 0.012, top + 0.93 * height),
        (a.heart_left, top + 0.76 * height), (cx + 0.78 * left, top + 0.45 * height),
        (cx + max(0.45 * left, 0.45 * a.upper_width), top + 0.13 * height), (cx + 0.5 * a.upper_width, top - 0.03),
    ], closed=True)  # fmt: skip


def _mediastinum(chest: Chest) -> None:
    """Great vessels, aorta with its knob, heart, trachea with the main bronchi."""
    a, cx = chest.anatomy, chest.anatomy.center_x
    half = 0.5 * a.upper_width
    top = min(lung.apex_y for lung in a.lungs.values())
    upper = polygon_mask(curve([(cx - 0.6 * half - 0.015, top - 0.05), (cx - half, top + 0.10),
                                (cx - half - 0.004, a.heart_top + 0.06), (cx, a.heart_bottom),
                                (cx + half, a.heart_top + 0.06), (cx + 0.95 * half, top + 0.14),
                                (cx + 0.6 * half + 0.015, top - 0.05)], closed=True), blur=1.0)  # fmt: skip
    toward(chest.pixels, 0.62, 0.92 * upper)
    knob_x, knob_y = a.knob
    bend = a.aorta_bend
    aorta = Layer()
    aorta.disc(knob_x, knob_y, a.knob_radius, a.knob_radius * 1.1)
    descending = curve([(knob_x + 0.3 * a.knob_radius, knob_y), (knob_x + 0.1 * a.knob_radius + bend, knob_y + 0.13),
                        (knob_x + 0.2 * bend, knob_y + 0.27), (cx + 0.03, knob_y + 0.42)])  # fmt: skip
    aorta.line(descending, 15 + 50 * bend)
    if bend:
        ascending = [(cx - half + 0.02, knob_y + 0.05), (cx - half - 0.10 * bend, knob_y + 0.13), (cx, knob_y + 0.26)]
        aorta.line(curve(ascending), 14 + 40 * bend)
    toward(chest.pixels, 0.66, 0.88 * aorta.mask(0.8))
    toward(chest.pixels, 0.74, 0.94 * polygon_mask(heart_outline(a), blur=0.9))
    airway = Layer()
    airway.line([(cx, -0.02), (cx + 0.004, a.carina_y)], 8)
    airway.line([(cx + 0.004, a.carina_y), (cx - 0.075, a.carina_y + 0.075)], 5)
    airway.line([(cx + 0.004, a.carina_y), (cx + 0.085, a.carina_y + 0.06)], 4.5)
    toward(chest.pixels, 0.36, 0.6 * airway.mask(1.0))


def _spine(chest: Chest, signs: Sequence[Sign], rng: np.random.Generator) -> None:
    """Vertebral bodies with endplates and pedicles; degenerative: osteophytes and sclerosis; deformed: one or more
    flattened, dense bodies."""
    a = chest.anatomy
    body, edges, spurs = Layer(), Layer(), Layer()
    wear, crush = worst(signs, "degenerative_spine"), worst(signs, "vertebral_deformity")
    crushed = {9} | ({7} if crush > 0.7 else set()) if crush else set()
    for index, y in enumerate(VERTEBRAE):
        x = float(a.spine_x(y))
        width, height = 0.036 + 0.0006 * index, 0.023
        if index in crushed:
            y, height, width = y + 0.006, 0.013, width + 0.012
        tilt = (float(a.spine_x(y + 0.01)) - float(a.spine_x(y - 0.01))) / 0.02 * width
        corners = [(x - width, y - height + tilt), (x + width, y - height - tilt), (x + width, y + height - tilt),
                   (x - width, y + height + tilt)]  # fmt: skip
        (spurs if index in crushed else body).polygon(corners, 1.0 if index in crushed else 0.55)
        edges.line(corners[:2], 1.0, 0.6)
        edges.line(corners[2:], 1.0, 0.6)
        for side in (-1, 1):
            edges.disc(x + side * 0.55 * width, y - 0.2 * height, 0.006, 0.009, value=0.55)
        if wear and index >= 3:
            _osteophytes(spurs, rng, x, y + height, width, wear)
    lighten(chest.pixels, 0.15, body.mask(0.9))
    lighten(chest.pixels, 0.28, edges.mask(0.5))
    if wear or crush:
        lighten(chest.pixels, 0.42, spurs.mask(0.5))


def _osteophytes(spurs: Layer, rng: np.random.Generator, x: float, y: float, width: float, wear: float) -> None:
    """Dense beaks that bridge the disc space at both sides, and a sclerotic endplate."""
    size = 0.011 + 0.013 * wear
    for side in (-1, 1):
        grow = size * rng.uniform(0.7, 1.2)
        root = x + side * width * 0.92
        spurs.polygon([(root, y - 0.013), (root + side * grow, y + 0.004), (root, y + 0.019)], 1.0)
    spurs.line([(x - width, y + 0.003), (x + width, y + 0.003)], 1.2 + 1.8 * wear, 0.95)


def rib_line(anatomy: Anatomy, side: Side, index: int) -> list[Point]:
    """The posterior part of a rib (0 the uppermost drawn) from the spine to the chest wall."""
    lung, direction = anatomy.lungs[side], DIRECTION[side]
    start_y = lung.apex_y + 0.012 + 0.068 * index * (lung.angle_y - lung.apex_y) / 0.70
    start_x = float(anatomy.spine_x(start_y)) + direction * 0.035
    drop = 0.02 + 0.009 * index
    wall = float(lung.outer(min(start_y + drop + 0.05, lung.angle_y)))
    points = []
    for t in (0.0, 0.2, 0.45, 0.7, 0.88, 1.0):
        y = start_y - 0.020 * np.sin(np.pi * min(t * 1.6, 1.0)) + (drop + 0.045) * t**2.2
        points.append((start_x + (wall + direction * 0.012 - start_x) * t, float(y)))
    return curve(points, steps=4)


def _ribs(chest: Chest) -> None:
    """Posterior ribs, slightly falling outwards, and fainter anterior ribs that fall inwards; bright cortex."""
    posterior, anterior = Layer(), Layer()
    for side in SIDES:
        lung, direction = chest.anatomy.lungs[side], DIRECTION[side]
        for index in range(10):
            line = rib_line(chest.anatomy, side, index)
            posterior.line(line, 5.0, 0.9)
            posterior.line(line, 3.0, 0.6)
            if index < 7:
                wall_x, wall_y = line[-1]
                inner = lung.inner_x + direction * 0.09
                front = [(wall_x, wall_y), (wall_x - direction * 0.05, wall_y + 0.045),
                         (inner + 0.4 * (wall_x - inner), wall_y + 0.10), (inner, wall_y + 0.125)]  # fmt: skip
                anterior.line(curve(front, steps=4), 5.5, 0.9)
                anterior.line(curve(front, steps=4), 3.5, 0.65)
    lighten(chest.pixels, 0.19, posterior.mask(0.5))
    lighten(chest.pixels, 0.085, anterior.mask(0.7))


def clavicle_line(anatomy: Anatomy, side: Side) -> list[Point]:
    """The collar bone from the sternum outwards."""
    direction, y, cx = DIRECTION[side], anatomy.clavicle_y, anatomy.center_x
    return curve([(cx + direction * 0.035, y + 0.028), (cx + direction * 0.12, y + 0.008),
                  (cx + direction * 0.23, y - 0.022), (cx + direction * 0.34, y - 0.045)])  # fmt: skip


def _shoulders(chest: Chest, signs: Sequence[Sign]) -> None:
    """Clavicles (a broken one is drawn in two offset pieces), scapulae, humeral heads."""
    layer = Layer()
    cx = chest.anatomy.center_x
    for side in SIDES:
        line, direction = clavicle_line(chest.anatomy, side), DIRECTION[side]
        pieces = [line]
        if any(s.finding == "fracture" and s.zone == "clavicle" and side in s.sides for s in signs):
            cut = len(line) // 2
            pieces = [line[: cut + 2], [(x - direction * 0.02, y + 0.042) for x, y in line[cut - 1 :]]]
        for piece in pieces:
            layer.line(piece, 6.5, 0.95)
            layer.line(piece, 4.0, 0.7)
        layer.disc(cx + direction * 0.485, 0.235, 0.06, 0.065, value=0.3)
        scapula = [(cx + direction * 0.36, 0.22), (cx + direction * 0.385, 0.36), (cx + direction * 0.36, 0.50)]
        layer.line(curve(scapula), 3.0, 0.35)
    lighten(chest.pixels, 0.26, layer.mask(0.7))


def expose(chest: Chest, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Film: scatter, tilt of the exposure, grain, contrast and gamma of this machine; 8 bits."""
    xs, ys = grid()
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    tilt_x, tilt_y, gain, gamma = rng.uniform(-1, 1, 4)
    film = chest.pixels * (1.0 + 0.05 * tilt_x * (xs - 0.5) + 0.05 * tilt_y * (ys - 0.5))
    film = film + 0.010 * grain
    film = np.clip(film * (1.12 + 0.05 * gain), 0.0, 1.0) ** (0.92 + 0.08 * gamma)
    return np.asarray(np.rint(255.0 * film), np.uint8)
