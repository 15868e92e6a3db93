"""A page for people: headings, sentences, tables, figures and lines to type, as HTML that prints and as Markdown.

The HTML is one file that loads nothing: no script, no font, no image from elsewhere, and a policy in its
head that forbids a browser to fetch any. Every text is escaped here, and only here, since a study's purpose
or a party's name was chosen by somebody else. A page about patients carries a warning in large letters.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blank:
    """A field that no ledger can fill.

    Attributes:
        what: What a person must write there.
    """

    what: str


Cell = str | int | Blank


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        columns: Their names.
        rows: Each as long as `columns`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        caption: What it shows.
        svg: An `<svg>` element, its texts escaped.
    """

    caption: str
    svg: str


@dataclass(frozen=True)
class Picture:
    """A photograph or scan, carried inside the page.

    Attributes:
        caption: What it shows.
        png: The file, of any size; shown at its own, and small ones enlarged.
    """

    caption: str
    png: bytes


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side. Whoever has the page has them."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Verdict:
    """A sentence that says whether something holds."""

    ok: bool
    text: str


@dataclass(frozen=True)
class Code:
    """Lines to type, shown as they are; our own words only, since nothing in them is escaped in Markdown."""

    text: str


Item = str | Table | Figure | Gallery | Verdict | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Its title.
        sections: In order.
        warning: What nobody may overlook; stands above everything, in large letters.
    """

    title: str
    sections: Sequence[Section] = field(default_factory=list)
    warning: str = ""

    @property
    def ok(self) -> bool:
        """Whether every verdict in it holds."""
        return all(item.ok for section in self.sections for item in section.items if isinstance(item, Verdict))


_STYLE = """
:root { color-scheme: light; }
body { font: 10.5pt/1.45 Georgia, "Times New Roman", serif; color: #111; background: #fff; max-width: 62em;
  margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; margin: 0 0 .3em; } h2 { font-size: 1.2em; margin: 1.8em 0 .4em; border-bottom: 1px solid #999; }
table { border-collapse: collapse; width: 100%; margin: .6em 0; font: 8.5pt/1.35 Helvetica, Arial, sans-serif; }
th, td { text-align: left; vertical-align: top; padding: .25em .5em; border-bottom: 1px solid #ccc; }
td.long { overflow-wrap: anywhere; }
th { border-bottom: 1.5px solid #111; } .number { text-align: right; white-space: nowrap; }
.blank { display: inline-block; min-width: 14em; border-bottom: 1px solid #111; color: #555; font-style: italic;
  padding-top: 1.1em; }
.verdict { padding: .4em .7em; border-left: 5px solid #1b5e20; background: #eef5ee; }
.verdict.bad { border-color: #b00020; background: #fbeaec; font-weight: bold; }
.warning { font: bold 2em/1.25 Helvetica, Arial, sans-serif; color: #fff; background: #b00020; padding: .5em .7em;
  margin: 0 0 .6em; }
.gallery { display: flex; flex-wrap: wrap; gap: .8em; } .gallery figure { margin: 0; }
.gallery img { min-width: 96px; image-rendering: pixelated; }
figure { margin: .8em 0; } figcaption { font-size: .9em; color: #333; } svg { width: 100%; height: auto; }
@page { size: A4; margin: 16mm 14mm; }
@media print {
  body { margin: 0; padding: 0; max-width: none; font-size: 9.5pt; } table { font-size: 7pt; }
  thead { display: table-header-group; } tr, figure, .verdict { break-inside: avoid; } h2 { break-after: avoid; }
  * { print-color-adjust: exact; }
}
"""

_LONG = 24  # characters of a word, such as a digest, that would push a table off the paper

_LINE = r"\_" * 9  # to write on

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_PICTURES = "; img-src data:"  # of the page's own bytes; only where it has pictures


def as_html(page: Page) -> str:
    """The page as one HTML file."""
    title = html.escape(page.title)
    warning = f'<p class="warning">{html.escape(page.warning)}</p>\n' if page.warning else ""
    policy = _POLICY + (_PICTURES if any(isinstance(i, Gallery) for s in page.sections for i in s.items) else "")
    body = "\n".join(
        f"<section>\n<h2>{html.escape(section.heading)}</h2>\n{chr(10).join(map(_html, section.items))}\n</section>"
        for section in page.sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{warning}<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def as_markdown(page: Page) -> str:
    """The page as Markdown (tables as GitHub and Pandoc read them); figures and pictures are left to the HTML."""
    parts = [*([f"**{_mark(page.warning)}**"] if page.warning else []), f"# {_mark(page.title)}"]
    for section in page.sections:
        parts += [f"## {_mark(section.heading)}", *map(_markdown, section.items)]
    return "\n\n".join(parts) + "\n"


def _html(item: Item) -> str:
    match item:
        case Verdict(ok, text):
            return f'<p class="verdict{"" if ok else " bad"}">{html.escape(text)}</p>'
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Figure(caption, svg):
            return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        case Gallery(pictures):
            return f'<div class="gallery">{"".join(map(_picture, pictures))}</div>'
        case Table(columns, rows):
            head = "".join(
                f"<th{_class('number', len(columns) > 3 and all(isinstance(row[place], int) for row in rows))}>"
                f"{html.escape(name)}</th>"
                for place, name in enumerate(columns)
            )
            lines = "\n".join(f"<tr>{''.join(_cell(cell, sums=len(columns) > 3) for cell in row)}</tr>" for row in rows)
            return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"
        case _:
            return f"<p>{html.escape(item)}</p>"


def _picture(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _cell(cell: Cell, *, sums: bool) -> str:
    """One cell; in a table of sums, numbers stand right. What is too long for a line may be broken anywhere."""
    if isinstance(cell, Blank):
        return f'<td><span class="blank">{html.escape(cell.what)}</span></td>'
    if isinstance(cell, int):
        return f"<td{_class('number', sums)}>{cell:,}</td>"
    is_long = any(len(word) > _LONG for word in cell.split())
    return f"<td{_class('long', is_long)}>{html.escape(cell)}</td>"


def _class(name: str, given: bool) -> str:
    return f' class="{name}"' if given else ""


def _markdown(item: Item) -> str:
    match item:
        case Verdict(ok, text):
            return f"**{'OK' if ok else 'FAILED'}:** {_mark(text)}"
        case Code(text):
            return f"```\n{text}\n```"
        case Figure(caption):
            return f"*{_mark(caption)} (drawn in the HTML page.)*"
        case Gallery(pictures):
            return f"*{len(pictures)} pictures (in the HTML page.)*"
        case Table(columns, rows):
            lines = [_row([_mark(name) for name in columns]), _row(["---"] * len(columns))]
            return "\n".join([*lines, *(_row([_mark_cell(cell) for cell in row]) for row in rows)])
        case _:
            return _mark(item)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mark_cell(cell: Cell) -> str:
    if isinstance(cell, Blank):
        return f"{_LINE} *({_mark(cell.what)})*"
    return f"{cell:,}" if isinstance(cell, int) else _mark(cell)


def _mark(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no link, no HTML, no second line."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~>$^@])", r"\\\1", " ".join(text.split()))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", escaped)  # some readers make links of bare addresses
