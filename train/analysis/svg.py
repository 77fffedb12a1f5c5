"""Charts as inline SVG that takes its colours from the page: one file, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 10, 34
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    name: str
    x: Sequence[float]
    y: Sequence[float]


def lines(title: str, series: Sequence[Line], x_label: str) -> str:
    """A figure: the chart with its legend. Points that are not finite are left out; "" if none is left."""
    clean = [Line(s.name, *_finite(s)) for s in series]
    clean = [s for s in clean if s.x]
    if not clean:
        return ""
    x_low, x_high = min(min(s.x) for s in clean), max(max(s.x) for s in clean)
    y_ticks = _ticks(min(min(s.y) for s in clean), max(max(s.y) for s in clean))
    x_ticks = [t for t in _ticks(x_low, x_high) if x_low <= t <= x_high]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, one in enumerate(clean):
        points = [place(x, y) for x, y in zip(one.x, one.y, strict=True)]
        if len(points) == 1:
            parts.append(f'<circle class="dot c{index % 8}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>')
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = _dash(index)
        parts.append(f'<polyline class="line c{index % 8}" stroke-dasharray="{dash}" points="{path}"/>')
    said = "; ".join(f"{s.name} from {s.y[0]:.3g} to {s.y[-1]:.3g}, least {min(s.y):.3g}" for s in clean)
    drawing = _svg(f"{title}. {said}.", WIDTH, HEIGHT, parts)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend([s.name for s in clean])}</figure>"


def scatter(title: str, points: Sequence[tuple[str, float, float]], names: Sequence[str]) -> str:
    """A figure of (class name, x, y) without axes, equal scales both ways."""
    size = 520
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    scale = (size - 24) / span
    parts = []
    for name, x, y in points:
        across, down = size / 2 + (x - middle[0]) * scale, size / 2 - (y - middle[1]) * scale
        index = names.index(name)
        parts.append(f'<circle class="dot c{index % 8}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>')
    counts = {name: sum(1 for point in points if point[0] == name) for name in names}
    said = ", ".join(f"{count} of {name}" for name, count in counts.items())
    drawing = _svg(f"{title}. Points: {said}.", size, size, parts)
    shown = [f"{name} ({counts[name]})" for name in names]
    return (
        f'<figure class="square"><figcaption>{escape(title)}</figcaption>{drawing}{legend(shown, dots=True)}</figure>'
    )


def legend(names: Sequence[str], *, dots: bool = False) -> str:
    items = []
    for index, name in enumerate(names):
        if dots:
            mark = f'<circle class="dot c{index % 8}" cx="13" cy="5" r="4"/>'
        else:
            dash = _dash(index)
            mark = f'<line class="line c{index % 8}" stroke-dasharray="{dash}" x1="0" x2="26" y1="5" y2="5"/>'
        items.append(f'<li><svg width="26" height="10" aria-hidden="true">{mark}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _dash(index: int) -> str:
    """Of a line's style: no two of 32 have colour and dash in common."""
    return DASHES[(index + index // 8) % len(DASHES)]


def _svg(said: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said, quote=True)}">{"".join(parts)}</svg>'
    )


def _finite(series: Line) -> tuple[list[float], list[float]]:
    """The finite points, at most about 800 of them."""
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    stride = max(1, len(kept) // 800)
    kept = kept[::stride] + ([kept[-1]] if (len(kept) - 1) % stride else [])
    return [x for x, _ in kept], [y for _, y in kept]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from about `low` to about `high`, some five of them."""
    if high - low < 0.02 * max(abs(low), abs(high), 1e-9):  # as good as constant: drawn flat, with short numbers
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-3), math.ceil(high / step - 1e-3)  # a hair outside may stay outside
    return [round(step * index, 12) for index in range(first, last + 1)]
