"""Numbers of flops, as people write and read them."""

import math
import re

from orchestrator.record import InvalidInput

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_flops(text: str, name: str = "max_flops") -> int:
    """A number of flops as people write it: "60M", "4.1 G", "2500000". `name` is what the message calls it."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)\s*", text, re.IGNORECASE)
    value = float(match[1]) * SUFFIXES[match[2].lower()] if match else math.nan
    if not (math.isfinite(value) and value > 0):
        raise InvalidInput(f"{name} is {text!r}; give a number above 0, such as 2500000, 60M or 4.1G")
    if value < 10 and value != round(value):  # a share was meant
        raise InvalidInput(f"{name} is {text!r}; give flops, such as 2500000, 60M or 4.1G, not a share of them")
    return round(value)


def format_flops(flops: float) -> str:
    """A number of flops with four digits, as parse_flops reads it: 12345678 is "12.35 M"."""
    unit, scale = next(((u, s) for u, s in reversed(SUFFIXES.items()) if flops >= s), ("", 1))
    return f"{flops / scale:.4g} {unit.upper() if unit != 'k' else unit}".strip()
