"""Two small drawings of a study, as SVG written by hand: bytes per round, and the length of the updates.

Bars are the bytes that all parties shared in a round; dots on lines are each party's L2 norm. Shapes tell
the parties apart as well as colours do, for a black-and-white printer.
"""

import html
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 190, 64, 130, 22, 30
_COLOURS = ("#1b4f8a", "#b35900", "#2e7d32", "#7b1fa2", "#5d4037", "#00695c", "#ad1457", "#455a64")
_DASHES = ("none", "6 3", "2 3", "8 3 2 3")

Points = Sequence[tuple[int, float]]
"""Rounds and values."""


def bars(title: str, unit: str, points: Points) -> str:
    """A bar for each round.

    Args:
        title: What is drawn.
        unit: Of the values.
        points: Rounds and values, at least one, values finite and not below 0.
    """
    frame = _Frame(title, unit, [points])
    width = max(1.0, min(28.0, 0.7 * frame.step))
    drawn = "".join(
        f'<rect x="{frame.x(round_) - width / 2:.1f}" y="{frame.y(value):.1f}" width="{width:.1f}"'
        f' height="{frame.y(0) - frame.y(value):.1f}" fill="{_COLOURS[0]}"><title>round {round_}: {value:,.0f} {unit}'
        "</title></rect>"
        for round_, value in points
    )
    return frame.around(drawn)


def lines(title: str, unit: str, series: Mapping[str, Points]) -> str:
    """A line for each party.

    Args:
        title: What is drawn.
        unit: Of the values.
        series: By party, rounds and values as for `bars`.
    """
    frame = _Frame(title, unit, list(series.values()))
    drawn = []
    for number, (name, points) in enumerate(series.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        path = " ".join(f"{frame.x(round_):.1f},{frame.y(value):.1f}" for round_, value in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>'
        )
        drawn += [
            f'<circle cx="{frame.x(round_):.1f}" cy="{frame.y(value):.1f}" r="2.6" fill="{colour}">'
            f"<title>{html.escape(name)}, round {round_}: {value:.4g}</title></circle>"
            for round_, value in points
        ]
        y, x = _TOP + 6 + 13 * number, _WIDTH - _RIGHT + 12
        if y < _HEIGHT - 4:
            drawn.append(
                f'<line x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="1.5"'
                f' stroke-dasharray="{dash}"/><text x="{x + 25}" y="{y + 3}">{html.escape(_short(name))}</text>'
            )
    return frame.around("".join(drawn))


class _Frame:
    """Axes, and where a round and a value stand on them."""

    def __init__(self, title: str, unit: str, series: Sequence[Points]) -> None:
        self._title, self._unit = title, unit
        self._rounds = sorted({round_ for points in series for round_, _ in points})
        self._top = max((value for points in series for _, value in points), default=0.0) or 1.0
        span = max(1, self._rounds[-1] - self._rounds[0])
        inner = _WIDTH - _LEFT - _RIGHT
        self.step = inner / (span + 1)

    def x(self, round_: int) -> float:
        """Where a round stands."""
        return _LEFT + (round_ - self._rounds[0] + 0.5) * self.step

    def y(self, value: float) -> float:
        """Where a value stands."""
        return _HEIGHT - _BOTTOM - value / self._top * (_HEIGHT - _TOP - _BOTTOM)

    def around(self, drawn: str) -> str:
        """The whole drawing."""
        floor, end = self.y(0), _WIDTH - _RIGHT
        ticks = "".join(
            f'<line x1="{_LEFT}" x2="{end}" y1="{self.y(value):.1f}" y2="{self.y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{self.y(value) + 3:.1f}" text-anchor="end">{_number(value)}</text>'
            for value in (0, self._top / 2, self._top)
        )
        every = max(1, len(self._rounds) // 12)
        rounds = "".join(
            f'<text x="{self.x(round_):.1f}" y="{floor + 13:.1f}" text-anchor="middle">{round_}</text>'
            for round_ in self._rounds[::every]
        )
        title = html.escape(self._title)
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}" font-family="Helvetica, Arial,'
            f' sans-serif" font-size="10" fill="#111"><text x="{_LEFT}" y="13" font-weight="bold">{title}</text>'
            f'{ticks}{rounds}<text x="{end}" y="{floor + 26:.1f}" text-anchor="end">round</text>'
            f'<line x1="{_LEFT}" x2="{end}" y1="{floor:.1f}" y2="{floor:.1f}" stroke="#111"/>{drawn}</svg>'
        )


def _number(value: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
