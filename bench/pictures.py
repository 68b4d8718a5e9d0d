"""Pictures as SVG: bars, and a line over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
LABELS = 230
ROW = 30
TOP = 46
# Readable on a white and on a dark page.
INK = "#6b7280"
OURS = "#dc2626"
OTHERS = "#94a3b8"


@dataclass(frozen=True)
class Bar:
    """One bar, and its ends of doubt."""

    label: str
    value: float
    low: float
    high: float
    is_ours: bool = False


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, each with a whisker from its lowest to its highest value."""
    most = max((bar.high for bar in rows), default=1.0) or 1.0
    scale = (WIDTH - LABELS - 80) / most
    parts = []
    for number, bar in enumerate(rows):
        y = TOP + number * ROW
        end = LABELS + bar.value * scale
        middle = y + ROW / 2
        parts += [
            _text(LABELS - 8, middle + 4, bar.label, anchor="end"),
            f'<rect x="{LABELS}" y="{y + 5}" width="{bar.value * scale:.1f}" '
            f'height="{ROW - 10}" fill="{OURS if bar.is_ours else OTHERS}"/>',
            f'<path d="M{LABELS + bar.low * scale:.1f} {middle}'
            f'H{LABELS + bar.high * scale:.1f}" stroke="{INK}" stroke-width="2"/>',
            _text(
                max(end, LABELS + bar.high * scale) + 6, middle + 4, _number(bar.value)
            ),
        ]
    return _picture(f"{title} ({unit})", TOP + len(rows) * ROW + 12, parts)


def line(
    title: str, points: Sequence[tuple[float, float]], x_unit: str, y_unit: str
) -> str:
    """A line through points, from zero up."""
    height, left, bottom = 260, 70, 210
    most_x = max((x for x, _ in points), default=1.0) or 1.0
    most_y = max((y for _, y in points), default=1.0) or 1.0
    x_scale = (WIDTH - left - 30) / most_x
    y_scale = (bottom - TOP) / most_y
    path = " ".join(
        f"{left + x * x_scale:.1f},{bottom - y * y_scale:.1f}" for x, y in points
    )
    parts = [
        f'<path d="M{left} {TOP}V{bottom}H{WIDTH - 30}" fill="none" stroke="{INK}"/>',
        f'<polyline points="{path}" fill="none" stroke="{OURS}" stroke-width="2"/>',
        _text(left - 6, TOP + 8, _number(most_y), anchor="end"),
        _text(left - 6, bottom, "0", anchor="end"),
        _text(WIDTH - 30, bottom + 18, f"{_number(most_x)} {x_unit}", anchor="end"),
    ]
    return _picture(f"{title} ({y_unit})", height, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="13">',
            _text(8, 24, title, weight="bold"),
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:g}" fill="{INK}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
