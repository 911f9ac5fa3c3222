"""Findings of lungs, pleura and bones, drawn onto a chest at the place and with the severity of their `Sign`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from rrg.data.anatomy import DIRECTION, LungShape
from rrg.data.canvas import Layer, Point, blob, curve, grid, lighten, toward
from rrg.data.chest import Chest, rib_line
from rrg.data.findings import Sign, Zone
from rrg.data.regions import Side

Drawer = Callable[[Chest, Sign, Side, np.random.Generator], None]

# Across (0 mediastinum .. 1 ribs) and down (0 apex .. 1 diaphragm) of a lesion's centre, by zone.
_CENTRES: Final[Mapping[Zone, Point]] = {
    "apex": (0.45, 0.12),
    "upper": (0.55, 0.26),
    "mid": (0.55, 0.54),
    "lower": (0.55, 0.83),
    "hilum": (0.16, 0.50),
    "whole": (0.50, 0.50),
}


def draw_lesion(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """Draws `sign` on each of its sides; signs that other modules draw are left alone."""
    drawer = _DRAWERS.get(sign.finding)
    if drawer is not None:
        for side in sign.sides:
            drawer(chest, sign, side, rng)


def place(lung: LungShape, zone: Zone, rng: np.random.Generator, spread: float = 0.12) -> Point:
    """A point in a zone, `spread` of the lung's size around the zone's centre."""
    across, down = _CENTRES.get(zone, (0.5, 0.5))
    dx, dy = rng.uniform(-spread, spread, 2)
    return lung.at(float(np.clip(across + 1.4 * dx, 0.08, 0.92)), float(np.clip(down + 0.6 * dy, 0.06, 0.95)))


def _haze(chest: Chest, side: Side, x: float, y: float, rx: float, ry: float, strength: float, level: float) -> None:
    window, values = blob(x, y, rx, ry)
    toward(chest.pixels[window], level, strength * values * chest.lungs[side][window])


def _opacity(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """A hazy patch that vessels shine through; streaky: bands; patchy or multiple: several; diffuse: a whole lung."""
    lung = chest.anatomy.lungs[side]
    if sign.texture == "streaky":
        _bands(chest, sign, side, rng, count=4, pixels=1.6, amount=0.30)
        return
    if sign.texture == "diffuse" or sign.zone == "whole":
        for down in (0.3, 0.55, 0.8):
            x, y = lung.at(0.5, down)
            _haze(chest, side, x, y, 0.13, 0.12, 0.45 + 0.25 * sign.severity, 0.55)
        return
    count = 3 if sign.texture == "patchy" or sign.multiple else 1
    for _ in range(count):
        x, y = place(lung, sign.zone, rng, spread=0.18 if count > 1 else 0.08)
        scale = (0.6 if count > 1 else 1.0) * (0.75 + 0.5 * sign.severity) * rng.uniform(0.9, 1.1)
        _haze(chest, side, x, y, 0.085 * scale, 0.07 * scale, 0.55 + 0.25 * sign.severity, 0.58)


def _consolidation(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Dense, fluffy airspace filling with air bronchograms."""
    lung = chest.anatomy.lungs[side]
    x, y = place(lung, sign.zone, rng, spread=0.06)
    scale = 0.8 + 0.55 * sign.severity
    _haze(chest, side, x, y, 0.085 * scale, 0.075 * scale, 0.85, 0.70)
    for _ in range(7):
        dx, dy = rng.normal(0.0, 0.045 * scale, 2)
        _haze(chest, side, x + float(dx), y + float(dy), 0.032 * scale, 0.03 * scale, 0.6, 0.74)
    air = Layer()
    for turn in (-0.5, 0.0, 0.5):
        reach = DIRECTION[side] * 0.07 * scale
        air.line([(x - 0.8 * reach, y - 0.02), (x + reach * float(np.cos(turn)), y + 0.07 * float(np.sin(turn)))], 1.2)
    toward(chest.pixels, 0.35, 0.45 * air.mask(0.4) * chest.lungs[side])


def _bands(
    chest: Chest, sign: Sign, side: Side, rng: np.random.Generator, count: int, pixels: float, amount: float
) -> None:
    """Nearly horizontal linear densities."""
    lung = chest.anatomy.lungs[side]
    layer = Layer()
    tilt = rng.uniform(-0.2, 0.2)
    for index in range(count):
        x, y = place(lung, sign.zone, rng, spread=0.04)
        y += 0.030 * (index - 0.5 * (count - 1))
        half, slope = 0.06 + 0.035 * sign.severity * rng.uniform(0.6, 1.1), tilt + rng.uniform(-0.08, 0.08)
        layer.line([(x - half, y + slope * half), (x, y - 0.006), (x + half, y - slope * half)], pixels)
    lighten(chest.pixels, amount, layer.mask(0.8) * chest.lungs[side])


def _atelectasis(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Thick plates, with some haze of lost volume around them."""
    x, y = place(chest.anatomy.lungs[side], sign.zone, rng, spread=0.03)
    _haze(chest, side, x, y, 0.12, 0.05, 0.25 + 0.2 * sign.severity, 0.5)
    _bands(chest, sign, side, rng, count=2 if sign.severity < 0.5 else 3, pixels=3.0 + 1.6 * sign.severity, amount=0.48)


def _effusion(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    _fluid(chest, side, height=0.06 + 0.30 * sign.severity**1.6, level=0.71)


def _blunted(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    _fluid(chest, side, height=0.050 + 0.025 * sign.severity, level=0.71)


def _fluid(chest: Chest, side: Side, height: float, level: float) -> None:
    """Fluid that hides angle and diaphragm below a meniscus rising towards the ribs; `height` above the dome."""
    lung = chest.anatomy.lungs[side]
    xs, ys = grid()
    outward = np.clip((xs - lung.inner_x) / (lung.outer_x - lung.inner_x), 0.0, 1.0)
    surface = lung.dome_y + 0.045 - height * (0.35 + 0.9 * outward**2.5)
    depth = np.clip((ys - surface) / 0.032, 0.0, 1.0)
    wall = np.clip((outward - 0.45) / 0.3, 0.0, 1.0) if height < 0.1 else np.float32(1.0)
    toward(chest.pixels, level, 0.95 * (depth * wall * chest.lungs[side]).astype(np.float32))


def _nodule(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Round, soft-edged, clearly denser than lung; large ones are masses."""
    radius = 0.020 + 0.034 * max(sign.severity - 0.4, 0.0) ** 1.3 if sign.severity < 0.9 else 0.058
    for _ in range(4 if sign.multiple or sign.texture == "diffuse" else 1):
        x, y = place(chest.anatomy.lungs[side], sign.zone, rng, spread=0.3 if sign.multiple else 0.1)
        r = radius * rng.uniform(0.85, 1.15)
        window, values = blob(x, y, r, r * rng.uniform(0.85, 1.1), power=5.0)
        toward(chest.pixels[window], 0.66, 0.85 * values)


def _granuloma(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Small, sharp, as dense as bone or more."""
    layer = Layer()
    scattered = sign.multiple or not sign.sided
    for _ in range(3 if scattered else 1):
        x, y = place(chest.anatomy.lungs[side], sign.zone, rng, spread=0.33 if scattered else 0.1)
        radius = (0.011 if sign.severity < 0.5 else 0.014) * rng.uniform(0.9, 1.15)
        layer.disc(x, y, radius, radius * rng.uniform(0.85, 1.1))
    toward(chest.pixels, 0.95, 0.92 * layer.mask(0.3))


def _calcified_nodes(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """A cluster of eggshell-like calcifications at the hilum or beside the trachea."""
    a = chest.anatomy
    x, y = a.lungs[side].at(0.10, 0.50)
    if sign.zone == "chest" or sign.place == "mediastinum":
        x, y = a.center_x + DIRECTION[side] * 0.045, a.carina_y
    layer = Layer()
    for _ in range(4):
        dx, dy = rng.uniform(-0.028, 0.028, 2)
        layer.disc(x + dx, y + 1.3 * dy, 0.0135, 0.0115)
    toward(chest.pixels, 0.95, 0.9 * layer.mask(0.4))


def _interstitial(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """A net of fine lines, over the zone or the whole lung."""
    lung = chest.anatomy.lungs[side]
    layer = Layer()
    for _ in range(190 if sign.zone == "whole" else 90):
        zone_spread = 0.5 if sign.zone == "whole" else 0.2
        x, y = place(lung, sign.zone, rng, spread=zone_spread)
        if sign.zone == "whole":
            x, y = lung.at(*(float(v) for v in rng.uniform((0.05, 0.12), (0.95, 1.0))))
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.006, 0.018)
        dx, dy = length * float(np.cos(angle)), length * float(np.sin(angle))
        layer.line([(x - dx, y - dy), (x + dx, y + dy)], 1.0, value=rng.uniform(0.6, 1.0))
    lighten(chest.pixels, 0.26 + 0.2 * sign.severity, layer.mask(0.3) * chest.lungs[side])


def _edema(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Bat-wing haze around the hila, septal lines at the bases."""
    lung = chest.anatomy.lungs[side]
    for across, down in ((0.2, 0.42), (0.5, 0.5), (0.25, 0.62), (0.5, 0.75), (0.3, 0.85)):
        x, y = lung.at(across, down)
        _haze(chest, side, x, y, 0.086, 0.095, 0.30 + 0.3 * sign.severity, 0.58)
    layer = Layer()
    for down in np.linspace(0.68, 0.98, 9):
        x, y = lung.at(0.97, float(down))
        layer.line([(x, y), (x - DIRECTION[side] * 0.04, y - 0.002)], 1.0)
    lighten(chest.pixels, 0.4, layer.mask(0.3) * chest.lungs[side])


def _emphysema(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Bullae: black, thin-walled, in the upper lung (the darker field and thin vessels are the chest's)."""
    lung = chest.anatomy.lungs[side]
    walls = Layer()
    for down, across in ((0.16, 0.5), (0.34, 0.72)):
        x, y = lung.at(across + 0.06 * rng.uniform(-1, 1), down)
        r = 0.034 + 0.022 * sign.severity * rng.uniform(0.7, 1.1)
        window, values = blob(x, y, r, 1.15 * r, power=6.0)
        toward(chest.pixels[window], 0.03, 0.85 * values * chest.lungs[side][window])
        ring = [(x + r * float(np.cos(t)), y + 1.15 * r * float(np.sin(t))) for t in np.linspace(0, 2 * np.pi, 20)]
        walls.line(ring, 1.0)
    lighten(chest.pixels, 0.30, walls.mask(0.3) * chest.lungs[side])


def _pneumothorax(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Black, vessel-free air outside of a thin white pleural line, widest at the apex."""
    lung, direction = chest.anatomy.lungs[side], DIRECTION[side]
    depth = 0.035 + 0.085 * sign.severity
    end = 0.45 + 0.5 * sign.severity
    y = np.linspace(lung.apex_y, lung.apex_y + end * (lung.angle_y - lung.apex_y), 24)
    fade = 1.0 - (np.linspace(0.0, 1.0, 24)) ** 3
    edge = lung.outer(y) - direction * depth * fade
    keep = (y > lung.apex_y + 0.55 * depth) & (direction * (edge - lung.apex_x) > 0.01)
    pleura: list[Point] = [(float(a), float(b)) for a, b in zip(edge[keep], y[keep], strict=True)]
    roof = (lung.apex_x - direction * 0.02, lung.apex_y + 0.8 * depth)
    pleura = curve([roof, *pleura[::3], pleura[-1]], steps=4)
    air = Layer()
    outside = [(float(lung.outer(p[1])) + direction * 0.05, p[1]) for p in reversed(pleura)]
    air.polygon([*pleura, *outside, (outside[-1][0], 0.02), (roof[0], 0.02)])
    toward(chest.pixels, 0.03, 0.85 * air.mask(0.5) * chest.lungs[side])
    line = Layer()
    line.line(pleura, 1.4)
    lighten(chest.pixels, 0.55, line.mask(0.3) * chest.lungs[side])


def _scarring(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Irregular strands that run together to a small dense centre."""
    lung = chest.anatomy.lungs[side]
    x, y = place(lung, sign.zone, rng, spread=0.06)
    layer = Layer()
    layer.disc(x, y, 0.013, 0.010)
    for angle in rng.uniform(0, 2 * np.pi, 6):
        length = 0.035 + 0.045 * sign.severity * rng.uniform(0.5, 1.2)
        bend = angle + rng.uniform(-0.5, 0.5)
        middle = (x + 0.5 * length * float(np.cos(angle)), y + 0.5 * length * float(np.sin(angle)))
        layer.line([(x, y), middle, (x + length * float(np.cos(bend)), y + length * float(np.sin(bend)))], 1.9)
    lighten(chest.pixels, 0.58, layer.mask(0.4) * chest.lungs[side])


def _pleural_thickening(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """A dense rind inside of the ribs, or a cap over the apex."""
    lung, direction = chest.anatomy.lungs[side], DIRECTION[side]
    layer = Layer()
    low, high = (0.0, 0.30) if sign.zone in ("apex", "upper") else (0.35, 0.95)
    y = np.linspace(lung.apex_y + low * (lung.angle_y - lung.apex_y), lung.apex_y + high * (lung.angle_y - lung.apex_y))
    wall = lung.outer(y) - direction * 0.016
    layer.line([(float(a), float(b)) for a, b in zip(wall, y, strict=True)], 7.0 + 6.0 * sign.severity)
    if low == 0.0:
        layer.line([(lung.inner_x, lung.apex_y + 0.025), (float(wall[6]), lung.apex_y + 0.018)], 9.0)
    toward(chest.pixels, 0.66, 0.85 * layer.mask(0.8) * chest.lungs[side])


def _fracture(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Broken ribs: a dark gap with a step, and the callus of healing around it. (The chest draws broken clavicles.)"""
    if sign.zone == "clavicle":
        return
    callus, gap = Layer(), Layer()
    for index in (5, 6, 4) if sign.multiple else (5,):
        line = rib_line(chest.anatomy, side, index)
        x, y = line[int(0.72 * len(line))]
        callus.disc(x, y, 0.020, 0.021)
        gap.line([(x - 0.004, y - 0.018), (x + 0.004, y + 0.018)], 1.6)
        tail = [(px, py + 0.012) for px, py in line[int(0.72 * len(line)) :]]
        callus.line(tail, 4.0, 0.45)
    lighten(chest.pixels, 0.46, callus.mask(0.8))
    toward(chest.pixels, 0.15, 0.75 * gap.mask(0.3))


def _air_in_soft_tissue(chest: Chest, sign: Sign, side: Side, rng: np.random.Generator) -> None:
    """Black streaks between the muscles of chest wall and neck."""
    a, direction = chest.anatomy, DIRECTION[side]
    layer = Layer()
    for _ in range(26):
        y = float(rng.uniform(0.25, 0.75))
        x = float(a.lungs[side].outer(y)) + direction * rng.uniform(0.015, 0.07)
        layer.line([(x, y), (x + direction * rng.uniform(-0.01, 0.02), y + rng.uniform(0.02, 0.05))], 1.6)
    for _ in range(8):
        x, y = a.center_x + direction * rng.uniform(0.07, 0.16), float(rng.uniform(0.03, 0.11))
        layer.line([(x, y), (x + rng.uniform(-0.02, 0.02), y + 0.04)], 1.6)
    toward(chest.pixels, 0.08, 0.8 * layer.mask(0.4) * (1 - chest.lungs[side]))


_DRAWERS: Final[Mapping[str, Drawer]] = MappingProxyType(
    {
        "opacity": _opacity,
        "consolidation": _consolidation,
        "atelectasis": _atelectasis,
        "effusion": _effusion,
        "blunted_angle": _blunted,
        "nodule": _nodule,
        "granuloma": _granuloma,
        "calcified_nodes": _calcified_nodes,
        "interstitial": _interstitial,
        "edema": _edema,
        "emphysema": _emphysema,
        "pneumothorax": _pneumothorax,
        "scarring": _scarring,
        "pleural_thickening": _pleural_thickening,
        "fracture": _fracture,
        "subcutaneous_emphysema": _air_in_soft_tissue,
    }
)
