"""Drawings: every value where it belongs, every text harmless."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.drawing import _ticks, as_file, groups, lines, stacks

SVG = "{http://www.w3.org/2000/svg}"


def shapes(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(as_file(svg)).iter(SVG + tag))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_scale_holds_its_values_and_has_few_round_numbers(low: float, span: float) -> None:
    ticks = _ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span + 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 7


def test_parts_of_a_bar_stand_on_each_other_and_are_as_high_as_their_values() -> None:
    bars = shapes(stacks("t", "images", ["a", "b"], {"ill": [3, 1], "well": [1, 7]}), "rect")
    heights = {
        bar.findtext(SVG + "title"): float(bar.get("height", "0")) for bar in bars if bar.findtext(SVG + "title")
    }
    assert heights["a, ill: 3 images"] == pytest.approx(3 * heights["a, well: 1 images"], abs=0.2)
    (ill,) = (bar for bar in bars if bar.findtext(SVG + "title") == "b, ill: 1 images")
    (well,) = (bar for bar in bars if bar.findtext(SVG + "title") == "b, well: 7 images")
    bottom = float(well.get("y", "0")) + float(well.get("height", "0"))
    assert bottom == pytest.approx(float(ill.get("y", "0")), abs=0.2)


def test_a_band_surrounds_its_line() -> None:
    svg = lines("t", "", {"a": [(0, 0.5), (1, 0.7)]}, bands={"a": [(0, 0.4, 0.6), (1, 0.6, 0.8)]}, floor=None)
    (line,), (band,) = shapes(svg, "polyline"), shapes(svg, "polygon")
    ys = [[float(point.split(",")[1]) for point in shape.get("points", "").split()] for shape in (line, band)]
    assert ys[1][0] < ys[0][0] < ys[1][3]  # the upper edge, from the left; then the lower one, back again
    assert ys[1][1] < ys[0][1] < ys[1][2]


def test_a_missing_bar_leaves_its_place_empty() -> None:
    found = shapes(groups("t", "", ["n", "s"], {"a": [(1, 0.5, 2), None], "b": [(2, 2, 2), (1, 1, 1)]}), "rect")
    titles = [bar.findtext(SVG + "title") for bar in found if bar.findtext(SVG + "title")]
    assert titles == ["n, a: 1  (0.5 to 2)", "n, b: 2  (2 to 2)", "s, b: 1  (1 to 1)"]


def test_long_names_lean_and_are_cut() -> None:
    svg = groups("t", "", [f"a hospital of a long name {n}" for n in range(8)], {"a": [(1, 1, 1)] * 8})
    texts = [text for text in shapes(svg, "text") if "rotate" in text.get("transform", "")]
    assert [text.text for text in texts] == [f"a hospit… name {n}" for n in range(8)]


def test_no_name_is_markup() -> None:
    evil = "<script>alert(1)</script>"
    for svg in (
        lines(evil, evil, {evil: [(1, 1.0)]}),
        groups(evil, evil, [evil], {evil: [(1, 1, 1)], "b": [None]}),
        stacks(evil, evil, [evil], {evil: [1]}),
    ):
        assert not re.search("<script", svg)
        ElementTree.fromstring(as_file(svg))
