"""Things that are not lung: calcified aorta, hernia, and everything made of metal or plastic.

Like `lesions`: drawn at the place of their `Sign`, after them, since metal shows through everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from rrg.data.anatomy import DIRECTION
from rrg.data.canvas import Layer, Point, blob, curve, toward
from rrg.data.chest import Chest
from rrg.data.findings import Sign
from rrg.data.lesions import place
from rrg.data.regions import Side

Drawer = Callable[[Chest, Sign, np.random.Generator], None]


def draw_device(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """Draws `sign` if it is one of this module's."""
    drawer = _DRAWERS.get(sign.finding)
    if drawer is not None:
        drawer(chest, sign, rng)


def _ink(chest: Chest, layer: Layer, level: float = 0.97, strength: float = 0.9, blur: float = 0.3) -> None:
    toward(chest.pixels, level, strength * layer.mask(blur))


def _aortic_calcification(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """A bright shell around the knob and flecks down the aorta."""
    a = chest.anatomy
    x, y = a.knob
    r = 0.88 * a.knob_radius
    arc = [(x + r * float(np.cos(t)), y + 1.1 * r * float(np.sin(t))) for t in np.linspace(-2.6, 0.9, 16)]
    layer = Layer()
    layer.line(arc, 2.6)
    for down in (0.10, 0.15, 0.20):
        edge = x + 0.4 * a.knob_radius + 0.025 + 0.6 * a.aorta_bend
        layer.line([(edge, y + down), (edge - 0.002, y + down + 0.022)], 2.0)
    _ink(chest, layer)


def _hiatal_hernia(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """A round mass behind the heart with an air-fluid level."""
    a = chest.anatomy
    r = 0.055 + 0.045 * sign.severity
    x, y = a.center_x + 0.35 * r + 0.01 * rng.uniform(-1, 1), a.heart_bottom - 0.75 * r
    window, values = blob(x, y, r, r, power=8.0)
    toward(chest.pixels[window], 0.88, 0.85 * values)
    air = Layer()
    air.polygon([(x + 0.80 * r * float(np.cos(t)), y - 0.08 * r + 0.72 * r * float(np.sin(t)))
                 for t in np.linspace(-np.pi, 0, 16)])  # fmt: skip
    toward(chest.pixels, 0.30, 0.8 * air.mask(0.4))


def _catheter(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """A central line from the arm or the port under the clavicle to the cavoatrial junction."""
    a = chest.anatomy
    sides: tuple[Side, ...] = sign.sides if sign.sided else ("right",)
    tip = (a.center_x - 0.38 * a.upper_width, a.heart_top + 0.09)
    bend = (a.center_x - 0.40 * a.upper_width, a.carina_y - 0.09)
    for side in sides:
        direction = DIRECTION[side]
        start = (a.center_x + direction * 0.275, a.clavicle_y + 0.115)
        over = (a.center_x + direction * 0.17, a.clavicle_y + 0.035)
        path: list[Point] = [start, (a.center_x + direction * 0.245, a.clavicle_y + 0.055), over]
        if side == "left":
            path.append((a.center_x + 0.02, a.clavicle_y + 0.055))
        layer = Layer()
        layer.line(curve([*path, bend, tip]), 2.6)
        layer.disc(*start, 0.026)
        layer.disc(*start, 0.013, value=0.45)
        _ink(chest, layer)


def _pacemaker(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """A generator under the skin of the chest with leads to the right atrium and the right ventricle."""
    a = chest.anatomy
    side: Side = sign.sides[0] if sign.sided else "left"
    direction = DIRECTION[side]
    x, y = a.center_x + direction * 0.285, a.clavicle_y + 0.125
    can = Layer()
    can.disc(x, y, 0.052, 0.044)
    _ink(chest, can, level=0.93, strength=0.95, blur=0.5)
    parts = Layer()
    parts.polygon([(x - 0.03, y - 0.008), (x + 0.03, y - 0.008), (x + 0.022, y + 0.026), (x - 0.022, y + 0.026)])
    _ink(chest, parts, level=0.80, strength=0.6)
    entry = [(x - direction * 0.03, y - 0.045), (a.center_x + direction * 0.16, a.clavicle_y + 0.03)]
    if side == "left":
        entry.append((a.center_x + 0.01, a.clavicle_y + 0.06))
    vein = (a.center_x - 0.40 * a.upper_width, a.carina_y - 0.02)
    height = a.heart_bottom - a.heart_top
    atrium = (a.heart_right + 0.045, a.heart_top + 0.55 * height)
    apex = (a.center_x + 0.52 * (a.heart_left - a.center_x), a.heart_top + 0.86 * height)
    leads = Layer()
    leads.line(curve([*entry, vein, (a.center_x - 0.055, a.heart_top + 0.6 * height), atrium]), 2.0)
    floor = (a.center_x - 0.02, a.heart_top + 0.84 * height)
    leads.line(curve([*entry, vein, (a.center_x - 0.07, a.heart_top + 0.55 * height), floor, apex]), 2.0)
    leads.disc(*apex, 0.009)
    leads.disc(*atrium, 0.009)
    _ink(chest, leads)


def _tube(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """An endotracheal tube; where the code says abdomen, a feeding tube to the stomach."""
    a = chest.anatomy
    layer = Layer()
    if sign.zone == "abdomen":
        stomach = a.lungs["left"].at(0.4, 1.12)
        layer.line(curve([(a.center_x, -0.01), (a.center_x + 0.012, 0.4), (a.center_x + 0.02, 0.7), stomach]), 2.6)
    else:
        tip = a.carina_y - 0.035
        for offset in (-0.011, 0.011):
            layer.line([(a.center_x + offset, -0.01), (a.center_x + offset, tip)], 1.4)
        layer.line([(a.center_x, -0.01), (a.center_x, tip + 0.008)], 1.2, 0.8)
    _ink(chest, layer)


def _clips(layer: Layer, rng: np.random.Generator, x: float, y: float, count: int, spread: float) -> None:
    for _ in range(count):
        dx, dy = rng.uniform(-spread, spread, 2)
        angle = rng.uniform(-0.9, 0.9)
        ex, ey = 0.014 * float(np.cos(angle)), 0.014 * float(np.sin(angle))
        layer.line([(x + dx - ex, y + dy - ey), (x + dx + ex, y + dy + ey)], 2.2)


def _surgical_material(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """Clips where the code says; mediastinum or nowhere: sternal wires with clips; in a lung: a chain of staples."""
    a = chest.anatomy
    layer = Layer()
    if sign.zone == "abdomen":
        for side in sign.sides if sign.sided else ("right",):
            lung = a.lungs[side]
            _clips(layer, rng, lung.inner_x + DIRECTION[side] * 0.11, min(lung.angle_y + 0.03, 0.94), 6, 0.032)
    elif sign.zone == "neck":
        _clips(layer, rng, a.center_x, 0.06, 5, 0.045)
    elif sign.zone in ("upper", "apex", "mid", "lower", "hilum"):
        for side in sign.sides:
            x, y = place(a.lungs[side], sign.zone, rng, spread=0.05)
            for step in np.linspace(-0.055, 0.055, 12):
                layer.disc(x + float(step), y + 0.4 * float(step) + 0.004 * rng.uniform(-1, 1), 0.0045)
    elif sign.on_chest_wall:
        for side in sign.sides:
            lung = a.lungs[side]
            _clips(layer, rng, lung.outer_x - DIRECTION[side] * 0.02, 0.5 * (lung.apex_y + lung.dome_y), 6, 0.045)
    else:
        for y in np.linspace(a.carina_y - 0.05, a.heart_bottom - 0.04, 5):
            wire = [(a.center_x + 0.021 * float(np.cos(t)), float(y) + 0.011 * float(np.sin(t)))
                    for t in np.linspace(0.4, 2 * np.pi, 12)]  # fmt: skip
            layer.line(wire, 1.6)
        _clips(layer, rng, a.center_x + 0.055, a.heart_top + 0.08, 4, 0.03)
    _ink(chest, layer)


def _spinal_hardware(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """Rods and screws along the spine; at the neck, a short plate."""
    a = chest.anatomy
    layer = Layer()
    start, end, gap = 0.42, 0.86, 0.026
    if sign.zone == "neck":
        start, end, gap = 0.0, 0.13, 0.016
    for side in (-1, 1):
        rod = [(float(a.spine_x(y)) + side * gap, float(y)) for y in np.linspace(start, end, 8)]
        layer.line(rod, 2.8)
        for x, y in rod[::2]:
            layer.line([(x - side * 0.004, y), (x - side * 0.02, y + 0.004)], 3.0)
    _ink(chest, layer)


def _foreign_body(chest: Chest, sign: Sign, rng: np.random.Generator) -> None:
    """Metal of no medical shape: a slug and splinters."""
    a = chest.anatomy
    sides: tuple[Side, ...] = sign.sides if sign.sided else (sign.sides[int(rng.integers(len(sign.sides)))],)
    layer = Layer()
    for side in sides:
        x, y = place(a.lungs[side], sign.zone if sign.zone != "chest" else "mid", rng, spread=0.2)
        points = []
        for t in np.linspace(0, 2 * np.pi, 9)[:-1]:
            r = 0.022 * rng.uniform(0.55, 1.25)
            points.append((x + r * float(np.cos(t)), y + r * float(np.sin(t))))
        layer.polygon(points)
        for _ in range(5):
            dx, dy = rng.normal(0.0, 0.035, 2)
            layer.disc(x + float(dx), y + float(dy), 0.005 * rng.uniform(0.6, 1.3))
    _ink(chest, layer, level=1.0, strength=1.0)


_DRAWERS: Final[Mapping[str, Drawer]] = MappingProxyType(
    {
        "aortic_calcification": _aortic_calcification,
        "hiatal_hernia": _hiatal_hernia,
        "catheter": _catheter,
        "pacemaker": _pacemaker,
        "tube": _tube,
        "surgical_material": _surgical_material,
        "spinal_hardware": _spinal_hardware,
        "foreign_body": _foreign_body,
    }
)
