"""Numbers as the tables show them."""

from __future__ import annotations

from collections.abc import Sequence


def fixed(value: float, digits: int = 3, sign: str = "") -> str:
    """`value` with so many digits; with `sign` "+" also a plus. What rounds to 0 has no sign: it has no direction."""
    text = f"{value:{sign}z.{digits}f}"
    return text if float(text) else text.removeprefix("+")


def spread(numbers: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """A value with its interval."""
    value, low, high = (fixed(number, digits, sign) for number in numbers)
    return f"{value} [{low}, {high}]"
