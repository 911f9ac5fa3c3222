"""A small drawing surface for rendered X-rays: brightness in [0, 1], painted through soft masks.

Thin and polygonal things are drawn by Pillow at twice the size and averaged down (a millisecond a layer); soft blobs
are written into a window only. Coordinates are fractions of the image, as in `anatomy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter

Array = npt.NDArray[np.float32]
Point = tuple[float, float]
SIZE: Final = 224
_SCALE: Final = 2


@cache
def grid() -> tuple[Array, Array]:
    """x [1, SIZE] and y [SIZE, 1] of the pixel centres."""
    centres = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)
    return centres[None, :], centres[:, None]


class Layer:
    """Shapes drawn at twice the size; `mask` gives them as [SIZE, SIZE] in [0, 1]."""

    def __init__(self) -> None:
        self._image = PILImage.new("L", (SIZE * _SCALE, SIZE * _SCALE), 0)
        self._draw = ImageDraw.Draw(self._image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        side = SIZE * _SCALE
        return [(x * side, y * side) for x, y in points]

    def polygon(self, points: Sequence[Point], value: float = 1.0) -> None:
        self._draw.polygon(self._scaled(points), fill=round(255 * value))

    def line(self, points: Sequence[Point], pixels: float, value: float = 1.0) -> None:
        """A polyline `pixels` wide (of the final image)."""
        width = max(1, round(pixels * _SCALE))
        # Joints cost more than the line; only thick lines show gaps without them.
        joint = "curve" if pixels > 6 else None
        self._draw.line(self._scaled(points), fill=round(255 * value), width=width, joint=joint)

    def disc(self, x: float, y: float, rx: float, ry: float | None = None, value: float = 1.0) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse([*self._scaled([(x - rx, y - ry)])[0], *self._scaled([(x + rx, y + ry)])[0]],
                           fill=round(255 * value))  # fmt: skip

    def mask(self, blur: float = 0.0) -> Array:
        """[SIZE, SIZE]; `blur` is the radius of the softening in pixels of the final image."""
        image = self._image.reduce(_SCALE)
        if blur >= 0.4:
            # Below a pixel one box pass looks like a Gaussian and costs a third.
            image = image.filter(ImageFilter.BoxBlur(blur) if blur < 1.0 else ImageFilter.GaussianBlur(blur))
        return np.asarray(image, np.float32) * np.float32(1 / 255)


def polygon_mask(points: Sequence[Point], blur: float = 0.0) -> Array:
    layer = Layer()
    layer.polygon(points)
    return layer.mask(blur)


def blob(x: float, y: float, rx: float, ry: float, power: float = 2.0) -> tuple[tuple[slice, slice], Array]:
    """A soft ellipse: (window, values in [0, 1]); `power` 2 is a Gaussian, more makes the edge harder."""
    reach = 2.2 if power <= 2.0 else 1.5
    x0, x1 = (min(max(int((x + s * reach * rx) * SIZE), 0), SIZE) for s in (-1, 1))
    y0, y1 = (min(max(int((y + s * reach * ry) * SIZE), 0), SIZE) for s in (-1, 1))
    xs, ys = grid()
    squared = ((xs[:, x0:x1] - x) / rx) ** 2 + ((ys[y0:y1] - y) / ry) ** 2
    return (slice(y0, y1), slice(x0, x1)), np.exp(-(squared ** (power / 2))).astype(np.float32)


def toward(target: Array, level: float, mask: Array) -> None:
    """Moves brightness toward `level` by `mask`, in place: what lies above an opacity still shines through."""
    target += (level - target) * mask


def lighten(target: Array, amount: float, mask: Array) -> None:
    """Adds attenuation, in place; saturates softly, as film does."""
    target += amount * mask * (1.08 - target)


def curve(points: Sequence[Point], closed: bool = False, steps: int = 6) -> list[Point]:
    """A smooth (Catmull-Rom) polyline through `points`."""
    p = np.asarray(points, np.float64)
    ends = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    q = np.concatenate([ends[0], p, ends[1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = (q[i : len(q) - 3 + i, None, :] for i in range(4))
    smooth = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    flat = smooth.reshape(-1, 2)
    if not closed:
        flat = np.concatenate([flat, p[-1:]])
    return [(x, y) for x, y in flat.tolist()]
