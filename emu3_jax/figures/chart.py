"""Small SVG charts without a plotting library, in the colours of the page.

Colours are CSS variables (`--c0` ... for series, `--ink`, `--soft`, `--line` for text and grid).
They have fallbacks, so that a chart fits a light and a dark page and can be opened alone.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

FALLBACK = ("#4457d6", "#e0662b", "#1c8f6a", "#b0429b", "#8a7a12", "#c0392b")
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 38


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
      name: for the legend.
      points: (x, y); points whose y is None or not finite are left out.
      color: index of the series colour.
      faint: draw thin and pale, for noisy values behind a smoothed line.
      dots: draw a dot at each point.
      dashed: draw dashes, for the second of two quantities.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    color: int = 0
    faint: bool = False
    dots: bool = False
    dashed: bool = False

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points with a finite y."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def smoothed(points: Sequence[tuple[float, float]], window: int) -> tuple[tuple[float, float], ...]:
    """Returns means over the last up to `window` points, without values that are not finite."""
    kept = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    out = []
    for i, (x, _) in enumerate(kept):
        part = [y for _, y in kept[max(0, i - window + 1) : i + 1]]
        out.append((x, sum(part) / len(part)))
    return tuple(out)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from low to high, in steps of 1, 2 or 5 times 10^n."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (440, 250),
) -> str:
    """Returns a line chart as an SVG element.

    Args:
      series: the lines, later ones on top.
      x_label, y_label: axis titles.
      marks: (x, text) of dashed vertical lines.
      size: width and height in pixels; the element scales with its container.
    """
    points = [p for line in series for p in line.finite]
    if not points:
        return '<p class="empty">nothing was logged</p>'
    frame = _Frame(points, size)
    parts = [_axes(frame, x_label, y_label)]
    parts += [_mark(frame, x, text) for x, text in marks]
    parts += [_line(frame, line) for line in series]
    width, height = size
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"'
        f' xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="11">'
        f"<title>{html.escape(y_label)} against {html.escape(x_label)}</title>"
        f"{''.join(parts)}</svg>"
    )


class _Frame:
    """Maps data coordinates to pixels."""

    def __init__(self, points, size):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.width, self.height = size
        self.x0, self.x1 = min(xs), max(max(xs), min(xs) + 1e-9)
        margin = 0.06 * (max(ys) - min(ys) or abs(max(ys)) or 1.0)
        self.y0, self.y1 = min(ys) - margin, max(ys) + margin

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def color(index: int) -> str:
    """Returns the CSS colour of a series."""
    index %= len(FALLBACK)
    return f"var(--c{index}, {FALLBACK[index]})"


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    parts, faint, ink = [], "var(--line, #ddd)", "var(--soft, #666)"
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{faint}"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{ink}">{value:g}</text>'
        )
    for value in ticks(frame.x0, frame.x1):
        x = frame.x(value)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="{ink}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{ink}">'
            f"{_short(value)}</text>"
        )
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{ink}"/>'
        f'<text x="{middle_x:.0f}" y="{frame.height - 6}" text-anchor="middle" fill="{ink}">'
        f"{html.escape(x_label)}</text>"
        f'<text transform="translate(11 {middle_y:.0f}) rotate(-90)" text-anchor="middle"'
        f' fill="{ink}">{html.escape(y_label)}</text>'
    )
    return "".join(parts)


def _mark(frame: _Frame, x: float, text: str) -> str:
    if not frame.x0 <= x <= frame.x1:
        return ""
    at = frame.x(x)
    left = at > 0.7 * frame.width
    anchor, shift = ("end", -5) if left else ("start", 5)
    ink = "var(--soft, #666)"
    return (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{frame.height - BOTTOM}"'
        f' stroke="{ink}" stroke-dasharray="3 3"/>'
        f'<text x="{at + shift:.1f}" y="{TOP + 9}" text-anchor="{anchor}" fill="{ink}"'
        f' font-style="italic">{html.escape(text)}</text>'
    )


def _line(frame: _Frame, line: Series) -> str:
    points = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.finite]
    width, opacity = (1, 0.28) if line.faint else (1.8, 1.0)
    stroke = color(line.color)
    dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
    parts = []
    if len(points) > 1:
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{stroke}"'
            f' stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"{dashes}/>'
        )
    if line.dots or len(points) == 1:
        for point in points:
            x, y = point.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.8" fill="{stroke}"/>')
    return "".join(parts)


def sheet(panels: Sequence[tuple[str, str]], names: Sequence[str], columns: int = 2) -> str:
    """Returns one SVG file of several charts and a legend.

    Args:
      panels: (title, chart of the default size) of each.
      names: names of the series, for the legend.
      columns: charts per row.
    """
    width, height, head = 440, 250, 26
    columns = min(columns, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    total = (columns * width + 20, rows * (height + head) + 40)
    parts = ['<rect width="100%" height="100%" fill="#fff"/>']
    x = 56
    for index, name in enumerate(names):
        parts.append(
            f'<rect x="{x}" y="16" width="18" height="4" rx="2" fill="{color(index)}"/>'
            f'<text x="{x + 25}" y="22" font-size="13" fill="#222">{html.escape(name)}</text>'
        )
        x += 25 + 8 * len(name) + 24
    for index, (title, svg) in enumerate(panels):
        left = 10 + index % columns * width
        top = 40 + index // columns * (height + head)
        place = f'<svg x="{left}" y="{top + head - 8}" width="{width}" height="{height}" '
        parts.append(
            f'<text x="{left + LEFT}" y="{top + 12}" font-size="14" font-weight="600"'
            f' fill="#222">{html.escape(title)}</text>' + svg.replace("<svg ", place, 1)
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}"'
        f' width="{total[0]}" height="{total[1]}" font-family="system-ui, sans-serif">'
        f"{''.join(parts)}</svg>\n"
    )


def _short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if letter == "k" else limit
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def scale_bar(value: float, chance: float | None, ceiling: float | None, index: int = 0) -> str:
    """Returns a bar from 0 to 100 with ticks at chance and ceiling, unless they are None."""
    width, height = 150, 16

    def x(percent: float) -> float:
        return 1 + (width - 2) * min(max(percent, 0.0), 100.0) / 100.0

    ticks_ = "".join(
        f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="1" y2="15" stroke="{stroke}"'
        f' stroke-width="2"{dash}><title>{name} {v:.1f} %</title></line>'
        for v, name, stroke, dash in (
            (chance, "chance", "var(--ink, #222)", ' stroke-dasharray="2 2"'),
            (ceiling, "ceiling", "var(--ink, #222)", ""),
        )
        if v is not None
    )
    return (
        f'<svg class="bar" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{value:.1f} of 100">'
        f'<rect x="1" y="4" width="{width - 2}" height="8" rx="4" fill="var(--line, #ddd)"/>'
        f'<rect x="1" y="4" width="{max(x(value) - 1, 1):.1f}" height="8" rx="4"'
        f' fill="{color(index)}"/>{ticks_}</svg>'
    )
