"""Small drawings for pages, as SVG written by hand: lines over rounds, and bars that stand, in groups or stacked.

    lines("AUC", "", {"fedavg": [(0, 0.5), (1, 0.8)]}, floor=None)
    groups("AUC", "", ["north", "south"], {"fedavg": [(0.8, 0.7, 0.9), None]})

Each returns one `<svg>` element that a page can hold; `as_file` makes it a file of its own. Every text in it is
escaped. Dashes tell lines apart as well as colours do, for a black-and-white printer.
"""

import html
import math
import sys
from collections.abc import Callable, Mapping, Sequence

_WIDTH, _LEFT, _TOP, _BOTTOM = 720, 64, 22, 30
_RIGHT = 130  # for the names
_LETTER = 5.3  # width of a letter at this size
_COLOURS = ("#1b4f8a", "#b35900", "#2e7d32", "#7b1fa2", "#5d4037", "#00695c", "#ad1457", "#455a64")
_DASHES = ("none", "6 3", "2 3", "8 3 2 3")

Points = Sequence[tuple[int, float]]
"""Rounds and values."""

Bands = Sequence[tuple[int, float, float]]
"""Rounds, and from where to where a value may lie."""

Bar = tuple[float, float, float] | None
"""A value, and from where to where it may lie; None where there is none."""


def as_file(svg: str) -> bytes:
    """A drawing as a file that stands alone."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).encode()


def bars(title: str, unit: str, points: Points) -> str:
    """A bar for each round.

    Args:
        title: What is drawn.
        unit: Of the values.
        points: Rounds and values, at least one, values finite and not below 0.
    """
    frame = _Frame(title, [value for _, value in points])
    axis = _Rounds(frame, [round_ for round_, _ in points])
    width = max(1.0, min(28.0, 0.7 * axis.step))
    drawn = "".join(
        frame.bar(axis.x(round_) - width / 2, width, 0, value, _COLOURS[0], f"round {round_}: {value:,.0f} {unit}")
        for round_, value in points
    )
    return frame.around(axis.drawn() + drawn)


def lines(
    title: str,
    unit: str,
    series: Mapping[str, Points],
    *,
    bands: Mapping[str, Bands] | None = None,
    floor: float | None = 0.0,
    height: int = 190,
    right: int = _RIGHT,
) -> str:
    """A line for each name.

    Args:
        title: What is drawn.
        unit: Of the values.
        series: By name, rounds and finite values.
        bands: By name, what is shaded about the line.
        floor: Where the scale begins; None, just below the lowest value.
        height: Of the drawing, of 720 wide.
        right: Of that width, what the names take.
    """
    bands = bands or {}
    values = [value for points in series.values() for _, value in points]
    values += [value for band in bands.values() for _, *ends in band for value in ends]
    frame = _Frame(title, values, floor, height=height, right=right)
    axis = _Rounds(frame, [round_ for points in series.values() for round_, _ in points])
    drawn = [axis.drawn()]
    for number, band in enumerate(bands.get(name, ()) for name in series):
        up = [f"{axis.x(round_):.1f},{frame.y(high):.1f}" for round_, _, high in band]
        down = [f"{axis.x(round_):.1f},{frame.y(low):.1f}" for round_, low, _ in reversed(band)]
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(f'<polygon points="{" ".join(up + down)}" fill="{colour}" fill-opacity="0.13"/>' if band else "")
    for number, (name, points) in enumerate(series.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        stroke = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"'
        path = " ".join(f"{axis.x(round_):.1f},{frame.y(value):.1f}" for round_, value in points)
        drawn.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        drawn += [
            f'<circle cx="{axis.x(round_):.1f}" cy="{frame.y(value):.1f}" r="2.6" fill="{colour}">'
            f"<title>{html.escape(f'{name}, round {round_}: {value:.4g} {unit}'.rstrip())}</title></circle>"
            for round_, value in points
        ]
        drawn.append(frame.dash(number, name, stroke))
    return frame.around("".join(drawn))


def groups(
    title: str,
    unit: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[Bar]],
    *,
    height: int = 240,
    right: int = _RIGHT,
) -> str:
    """Bars side by side above each name, with whiskers.

    Args:
        title: What is drawn.
        unit: Of the values.
        names: Below the groups.
        series: By what a bar is of, a bar above each name; values not below 0.
        height: Of the drawing, of 720 wide.
        right: Of that width, what the names of the series take.
    """
    values = [value for row in series.values() for bar in row if bar for value in bar]
    frame = _Frame(title, values, height=height, right=right, names=names)
    width = min(28.0, 0.8 * frame.slot(len(names)) / len(series))
    drawn = []
    for number, (what, row) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for place, bar in enumerate(row):
            if bar is None:
                continue
            value, low, high = bar
            x = frame.centre(place, len(names)) + (number - len(series) / 2) * width
            told = f"{names[place]}, {what}: {value:.4g} {unit} ({low:.4g} to {high:.4g})"
            drawn.append(frame.bar(x, 0.92 * width, 0, value, colour, told))
            middle, ends = x + 0.46 * width, (frame.y(low), frame.y(high))
            drawn.append(
                f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="#111"/>'
            )
        drawn.append(frame.swatch(number, what) if len(series) > 1 else "")
    return frame.around(frame.names(names) + "".join(drawn))


def stacks(title: str, unit: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """A bar above each name, made of parts.

    Args:
        title: What is drawn.
        unit: Of the values.
        names: Below the bars.
        series: By what a part is of, its value for each name, not below 0.
    """
    sums = [sum(parts) for parts in zip(*series.values(), strict=True)]
    frame = _Frame(title, sums, height=240, names=names)
    width, below, drawn = min(48.0, 0.8 * frame.slot(len(names))), [0.0] * len(names), []
    for number, (what, values) in enumerate(series.items()):
        for place, value in enumerate(values):
            x, start = frame.centre(place, len(names)) - width / 2, below[place]
            told = f"{names[place]}, {what}: {value:,.0f} {unit}"
            drawn.append(frame.bar(x, width, start, start + value, _COLOURS[number % len(_COLOURS)], told))
            below[place] += value
        drawn.append(frame.swatch(number, what))
    return frame.around(frame.names(names) + "".join(drawn))


class _Frame:
    """The space of a drawing, and where a value stands in it."""

    def __init__(
        self,
        title: str,
        values: Sequence[float],
        floor: float | None = 0.0,
        *,
        height: int = 190,
        right: int = _RIGHT,
        names: Sequence[str] = (),
    ) -> None:
        self._title, self._height, self._right = title, height, right
        self.ticks = _ticks(min(values, default=0.0) if floor is None else floor, max(values, default=1.0))
        self._low, self._high = self.ticks[0], self.ticks[-1]
        self.inner = _WIDTH - _LEFT - right
        self._leaning = bool(names) and max(map(len, map(_short, names))) * _LETTER > self.slot(len(names))
        self.floor = height - (72 if self._leaning else _BOTTOM)

    def y(self, value: float) -> float:
        """Where a value stands."""
        return self.floor - (value - self._low) / (self._high - self._low) * (self.floor - _TOP)

    def slot(self, count: int) -> float:
        """The width of one of so many."""
        return self.inner / count

    def centre(self, place: int, count: int) -> float:
        """The middle of one of so many."""
        return _LEFT + (place + 0.5) * self.slot(count)

    def bar(self, x: float, width: float, start: float, end: float, colour: str, told: str) -> str:
        """A bar from one value to another."""
        return (
            f'<rect x="{x:.1f}" y="{self.y(end):.1f}" width="{width:.1f}" height="{self.y(start) - self.y(end):.1f}"'
            f' fill="{colour}"><title>{html.escape(told)}</title></rect>'
        )

    def names(self, names: Sequence[str]) -> str:
        """Words below the axis, leaning if they would not fit."""
        every = max(1, math.ceil(14 * len(names) / self.inner)) if self._leaning else 1
        drawn = []
        for place in range(0, len(names), every):
            x, y = self.centre(place, len(names)), self.floor + 13
            lean = (
                f'transform="rotate(-35 {x:.1f} {y:.1f})" text-anchor="end"'
                if self._leaning
                else 'text-anchor="middle"'
            )
            drawn.append(f'<text x="{x:.1f}" y="{y:.1f}" {lean}>{html.escape(_short(names[place]))}</text>')
        return "".join(drawn)

    def name(self, number: int, name: str, mark: Callable[[int, int], str]) -> str:
        """A line of the legend, if there is room; `mark` draws what stands before the name."""
        y, x = _TOP + 6 + 13 * number, _WIDTH - self._right + 12
        if y >= self._height - 4:
            return ""
        word = html.escape(_short(name, int((self._right - 40) / _LETTER)))
        return f'{mark(x, y)}<text x="{x + 25}" y="{y + 3}">{word}</text>'

    def dash(self, number: int, name: str, stroke: str) -> str:
        """A line of the legend for lines."""
        return self.name(number, name, lambda x, y: f'<line x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}" {stroke}/>')

    def swatch(self, number: int, name: str) -> str:
        """A line of the legend for bars."""
        colour = _COLOURS[number % len(_COLOURS)]
        return self.name(
            number, name, lambda x, y: f'<rect x="{x + 6}" y="{y - 5}" width="10" height="10" fill="{colour}"/>'
        )

    def around(self, drawn: str) -> str:
        """The whole drawing."""
        end, title = _WIDTH - self._right, html.escape(self._title)
        ticks = "".join(
            f'<line x1="{_LEFT}" x2="{end}" y1="{self.y(value):.1f}" y2="{self.y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{self.y(value) + 3:.1f}" text-anchor="end">{_number(value)}</text>'
            for value in self.ticks
        )
        return (
            f'<svg viewBox="0 0 {_WIDTH} {self._height}" role="img" aria-label="{title}" font-family="Helvetica, Arial,'
            f' sans-serif" font-size="10" fill="#111"><text x="{_LEFT}" y="13" font-weight="bold">{title}</text>'
            f'{ticks}<line x1="{_LEFT}" x2="{end}" y1="{self.floor:.1f}" y2="{self.floor:.1f}" stroke="#111"/>'
            f"{drawn}</svg>"
        )


class _Rounds:
    """The axis of rounds."""

    def __init__(self, frame: _Frame, rounds: Sequence[int]) -> None:
        self._frame, self._rounds = frame, sorted(set(rounds))
        self.step = frame.inner / (max(1, self._rounds[-1] - self._rounds[0]) + 1)

    def x(self, round_: int) -> float:
        """Where a round stands."""
        return _LEFT + (round_ - self._rounds[0] + 0.5) * self.step

    def drawn(self) -> str:
        """The numbers below it."""
        floor, every = self._frame.floor, max(1, len(self._rounds) // 12)
        numbers = "".join(
            f'<text x="{self.x(round_):.1f}" y="{floor + 13:.1f}" text-anchor="middle">{round_}</text>'
            for round_ in self._rounds[::every]
        )
        end = _LEFT + self._frame.inner
        return f'{numbers}<text x="{end}" y="{floor + 26:.1f}" text-anchor="end">round</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, the first not above `low` and the last not below `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(max(span / 4, sys.float_info.min)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _short(name: str, most: int = 16) -> str:
    """A name without its middle, if it is long: names often differ at their ends."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"
