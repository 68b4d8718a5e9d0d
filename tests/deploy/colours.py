"""How far apart colours look, also to people who see fewer of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Colour = tuple[float, float, float]

# How a person without one kind of cone sees: on linear RGB, severity 1.0 of Machado,
# Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009.
KINDS_OF_SIGHT: dict[str, Sequence[Colour]] = {
    "trichromacy": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
# Linear RGB of sRGB to CIE XYZ, and its white, D65.
XYZ: Sequence[Colour] = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
WHITE = (0.95047, 1.0, 1.08883)


def distance(one: str, other: str, sight: str = "trichromacy") -> float:
    """Euclidean distance in CIELAB; about 2 can just be told apart side by side.

    Arguments:
        one, other: As #RRGGBB.
        sight: One of KINDS_OF_SIGHT.
    """
    a, b = (_lab(_times(KINDS_OF_SIGHT[sight], _linear(each))) for each in (one, other))
    return math.dist(a, b)


def _linear(colour: str) -> Colour:
    red, green, blue = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return _expanded(red), _expanded(green), _expanded(blue)


def _expanded(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _lab(linear: Colour) -> Colour:
    inside = [min(1.0, max(0.0, value)) for value in linear]
    xyz = _times(XYZ, (inside[0], inside[1], inside[2]))
    x, y, z = (_root(value / white) for value, white in zip(xyz, WHITE, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _root(value: float) -> float:
    return value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116


def _times(matrix: Sequence[Colour], vector: Colour) -> Colour:
    first, second, third = (
        sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix
    )
    return first, second, third
