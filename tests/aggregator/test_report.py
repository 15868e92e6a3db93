"""The report: its numbers are the ledger's, it loads nothing, and no text in a ledger can become markup."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from aggregator.report import Page, as_html, as_markdown, report
from models.errors import BadSignature, Rewritten
from models.exchange import wire
from models.exchange.documents import Agreement, Filter, Manifest, Privacy, Refusal
from models.exchange.statement import Kind, Statement
from models.ledger import Entry, Event, Ledger, Record, Signer, Verifier, read
from models.page import Blank, Section, Table, Verdict

HOSTILE = (
    '<script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(1)> | `a` '
    "[b](https://evil.example) &amp; \"q\" 'q' www.evil.example"
)
VOID = {"meta"}
LOADING = {"src", "href", "srcset", "data", "action", "background", "poster", "xlink:href", "style"}


class Read(HTMLParser):
    """An HTML page as a reader of it would see it; complains where it is not well-formed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text, self.headings = "", list[str]()
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self._open):
            self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if {"h1", "h2"} & set(self._open):
            self.headings[-1] += data

    def table(self, *columns: str) -> list[dict[str, str]]:
        """The rows of the first table that begins with these columns."""
        for head, *rows in self.tables:
            if tuple(head[: len(columns)]) == columns:
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table of {columns}")

    def answers(self, first: str = "what") -> dict[str, str]:
        """Every row of the tables of names and values."""
        return {row[-2]: row[-1] for table in self.tables for row in table[1:] if len(row) <= 3}


def lines(folder: Path, event: Event) -> list[Record]:
    return [record for record in read(folder).records if record.event == event]


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.fixture
def eventful(toy: Callable[..., Any]) -> Iterator[Any]:
    """A round in which one hospital was refused, one refused, one said nothing and one added noise."""
    world = toy(rounds=1, min_silos=1, deadline=0.3)
    refuse = Refusal(code="round-limit")
    world.poison("east", lambda h, o, a: wire.pack(h.update(o, a, base="ab" * 32)), round_=1)
    world.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_=1)
    noisy = {
        "filters": [Filter(name="clip", bound=10).model_dump(), Filter(name="noise", sd=0.5).model_dump()],
        "privacy": Privacy(epsilon=3.25, delta=1e-5).model_dump(),
    }
    world.poison("north", lambda h, o, a: wire.pack(h.update(o, a, **noisy)), round_=1)
    world.hospitals["south"].silent = True
    world.run()
    return world


@pytest.fixture
def hostile(finished: Path, tmp_path: Path) -> Path:
    """A hospital's ledger of a study whose coordinator chose every word to do harm."""
    path = finished / "toy" / "agreement.json"
    agreement = Agreement.decode(path.read_bytes())
    plan = agreement.plan.model_copy(update={"purpose": HOSTILE})
    agreement = agreement.model_copy(update={"plan": plan})
    with Ledger.create(
        tmp_path / "hostile", Signer.from_seed("north", b"n" * 32), {"policy": {HOSTILE: HOSTILE}}
    ) as ledger:
        body = {"agreement": ledger.store(agreement.encode()), "name": HOSTILE, "purpose": HOSTILE}
        body |= {"recipient": HOSTILE, "recipient_key": HOSTILE, "by": HOSTILE, "decision": HOSTILE}
        ledger.append(Entry(Event.STUDY_APPROVED, body, study=agreement.study))
        for kind in ("update", "report", "refusal"):
            statement = {"kind": kind, "src": HOSTILE, "dst": HOSTILE, "nbytes": 5, "body": HOSTILE, "payload": HOSTILE}
            more = {"statement": statement, "code": HOSTILE}
            ledger.append(Entry(f"{kind}.offered", more, study=agreement.study, round=1))
        ledger.append(Entry(Event.ORDER_REJECTED, {"code": HOSTILE}))
    return ledger.folder


# The numbers


def test_each_message_that_left_stands_in_the_report_as_it_stands_in_the_ledger(finished: Path) -> None:
    folder = finished / "north"
    opened = read(folder)
    rows = Read(as_html(report(folder))).table("line", "time (UTC)", "round", "from")
    left = [record for record in opened.records if record.event.endswith(".offered")]
    assert len(rows) == len(left) == 5  # three updates, the last model's metrics, the farewell
    for row, record in zip(rows, left, strict=True):
        statement = record.body["statement"]
        assert number(row["line"]) == record.seq + 1
        assert (row["time (UTC)"], number(row["round"])) == (record.ts, record.round)
        assert (row["from"], row["to"], row["what"]) == ("north", "aggregator", statement["kind"])
        assert number(row["bytes"]) == statement["nbytes"]
        if statement["kind"] == "update":
            manifest = Manifest.decode(opened.manifest(statement["body"]))
            assert row["norm (L2)"] == f"{manifest.norm:.4g}"
            assert row["filters"] == "clip 10"
            assert row["examples"] == "17 images"
            assert f"loss {manifest.metrics['loss']}" in row["told besides"]
    receipts = {record.body["xid"] for record in lines(folder, Event.EXCHANGE_RECEIPT)}
    assert sum(row["receipt"] == "yes" for row in rows) == len(receipts)


def test_the_sums_of_the_report_are_those_of_the_ledger(finished: Path) -> None:
    folder = finished / "toy" / "ledger"
    said = Read(as_html(report(folder))).answers()
    came = [
        record
        for record in read(folder).records
        if record.event.endswith(".received") and record.body["statement"]["src"] != "aggregator"
    ]
    assert number(said["Messages of hospitals"]) == len(came)
    assert number(said["Bytes of hospitals"]) == sum(record.body["statement"]["nbytes"] for record in came)
    assert number(said["of these, model updates"]) == len(lines(folder, Event.UPDATE_RECEIVED))
    assert said["Root of their tree"] == read(folder).head.root.hex()
    assert number(said["Signed lines"]) == read(folder).head.size


def test_the_aggregators_report_says_which_updates_made_which_model(finished: Path) -> None:
    folder = finished / "toy" / "ledger"
    rows = Read(as_html(report(folder))).table("line", "time (UTC)", "round", "updates combined")
    made = lines(folder, Event.AGGREGATED)
    assert [row["model that stands (SHA-256)"] for row in rows] == [record.body["model"] for record in made]
    assert {row["updates combined"] for row in rows} == {"east, north, south, west"}


def test_refusals_rejections_silence_and_epsilon_are_told(eventful: Any) -> None:
    page = Read(as_html(report(eventful.folder / "toy" / "ledger")))
    trouble = {row["other party"]: row["code"] for row in page.table("line", "time (UTC)", "round", "what")}
    assert trouble == {"east": "stale-base", "west": "round-limit", "south": "-"}
    shared = {
        (row["from"], row["what"]): row
        for row in page.table("line", "time (UTC)", "round", "from")
        if row["round"] == "1"
    }
    assert shared["east", "update"]["told besides"].endswith("not used: stale-base")
    assert shared["west", "refusal"]["told besides"] == "refused: round-limit"
    assert shared["north", "update"]["filters"] == "clip 10, noise 0.5"
    privacy = {row["hospital"]: (row["epsilon in all"], row["delta"]) for row in page.table("hospital", "updates")}
    assert privacy == {"north": ("3.25", "1e-05"), "east": ("no noise: not bounded", "-")}


def test_approvals_and_revocations_are_told_with_who_said_them(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "north"
    shutil.copytree(finished / "north", folder)
    study = lines(folder, Event.STUDY_APPROVED)[0].study
    agreement = {key: value for key, value in lines(folder, Event.STUDY_APPROVED)[0].body.items() if key != "by"}
    with Ledger.open(folder, _north()) as ledger:
        ledger.append(Entry(Event.STUDY_REVOKED, {"name": "toy", "by": "person", "decision": "cd" * 32}, study=study))
        ledger.append(Entry(Event.STUDY_APPROVED, {**agreement, "by": "policy"}, study=study))
        ledger.append(Entry(Event.STUDY_APPROVED, agreement, study=study))
    rows = Read(as_html(report(folder))).table("line", "time (UTC)", "word")
    assert [(row["word"], row["said by"]) for row in rows[1:]] == [
        ("revoked", "a person at this hospital"),
        ("approved", "this hospital's policy, which names the study"),
        ("approved", "not recorded"),
    ]
    assert rows[1]["signed decision (SHA-256)"] == "cd" * 32


def _north() -> Signer:
    return Signer.from_seed("north", hashlib.sha256(b"north").digest())


def test_the_plot_has_a_bar_of_the_bytes_of_each_round_and_a_point_for_each_norm(finished: Path) -> None:
    folder = finished / "toy" / "ledger"
    page = as_html(report(folder))
    drawings = [Xml.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]
    assert len(drawings) == 2
    bars = {
        int(found.group(1)): number(found.group(2))
        for rect in drawings[0].iter("rect")
        if (found := re.match(r"round (\d+): ([\d,]+) bytes", str(rect.findtext("title"))))
    }
    expected: dict[int, int] = {}
    for record in read(folder).records:
        statement = record.body.get("statement")
        if statement and statement["dst"] == "aggregator" and record.round is not None:
            expected[record.round] = expected.get(record.round, 0) + statement["nbytes"]
    assert bars == expected
    heights = {
        round_: float(rect.get("height", "0")) for round_, rect in zip(bars, drawings[0].iter("rect"), strict=True)
    }
    tallest = max(bars, key=lambda round_: bars[round_])
    for round_, height in heights.items():
        assert height / heights[tallest] == pytest.approx(bars[round_] / bars[tallest], abs=0.01)
    assert len(list(drawings[1].iter("circle"))) == len(lines(folder, Event.UPDATE_RECEIVED))


# The checks


def test_the_report_says_that_both_sides_agree(finished: Path) -> None:
    page = report(finished / "north", aggregator=finished / "toy" / "ledger")
    assert page.ok
    text = Read(as_html(page)).text
    assert re.search(r"both ledgers hold the same 5 orders and 5 replies; 0 unacknowledged", text)
    assert "nothing is wrong" in text


def test_the_report_of_a_ledger_that_contradicts_the_other_one_is_not_ok(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    with Ledger.create(folder, Signer.from_seed("north", b"x" * 32)) as ledger:
        ledger.append(Entry(Event.ORDER_REJECTED, {"code": "malformed"}))
    page = report(folder, aggregator=finished / "toy" / "ledger")
    assert not page.ok
    assert 'class="verdict bad"' in as_html(page)
    assert "**FAILED:**" in as_markdown(page)


def test_a_receipt_that_its_signer_did_not_give_is_told_as_none(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "north", tmp_path / "north"))
    closing = lines(folder, Event.CLOSING_OFFERED)[0]
    xid = Statement.parse(closing.body["statement"]).xid
    with Ledger.open(folder, _north()) as ledger:
        ledger.append(Entry(Event.EXCHANGE_RECEIPT, {"xid": xid, "receipt": "00" * 64}, study=closing.study))
    page = report(folder)
    rows = Read(as_html(page)).table("line", "time (UTC)", "round")
    assert [(row["what"], row["receipt"]) for row in rows[-2:]] == [("report", "yes"), ("closing", "no")]
    assert not page.ok


def test_a_rewritten_ledger_has_no_report(begun: Any) -> None:
    begun.close()
    path = begun.folder / "north" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    with pytest.raises(Rewritten):
        report(path.parent)


def test_a_ledger_under_another_key_than_the_given_one_has_no_report(finished: Path) -> None:
    with pytest.raises(BadSignature):
        report(finished / "north", verifier=Verifier("north", Signer.from_seed("north", b"x" * 32).verifier.key))
    own = report(finished / "north", verifier=_north().verifier)
    assert "the key that it names itself" not in as_html(own)
    assert "the key that it names itself" in as_html(report(finished / "north"))


def test_a_manifest_that_was_lost_makes_the_report_say_so(begun: Any) -> None:
    begun.close()
    folder = begun.folder / "north"
    body = lines(folder, Event.UPDATE_OFFERED)[0].body["statement"]["body"]
    (folder / "manifests" / f"{body}.json").unlink()
    page = report(folder)
    assert not page.ok
    assert as_html(page)


# The two laws


@pytest.mark.parametrize("side", ["north", "toy/ledger"])
def test_the_accounting_of_disclosures_answers_what_164_528_asks(finished: Path, side: str) -> None:
    folder = finished / side
    page = Read(as_html(report(folder, view="hipaa")))
    said = page.answers()
    event = Event.UPDATE_OFFERED if side == "north" else Event.UPDATE_RECEIVED
    last = Event.REPORT_OFFERED if side == "north" else Event.REPORT_RECEIVED
    first, final = lines(folder, event)[0], lines(folder, last)[-1]
    assert said["Date of the first disclosure"] == first.ts
    assert said["Date of the last disclosure"] == final.ts
    assert number(said["Number of disclosures in the period"]) == len(lines(folder, event)) + len(lines(folder, last))
    times = 4 if side == "north" else 16  # of each hospital three updates, and the last model's metrics
    assert said["How often"].startswith(f"{times} times, in 3 of 3 planned rounds")
    assert said["Purpose"] == "Test."
    assert said["Recipient, as the ledger names it"].startswith("aggregator (key aggregator+")
    assert "images of modality MR" in said["Type of protected health information"]
    blank = [text for text in said if "address" in said[text]]
    assert len(blank) == 3  # hospital, recipient, sponsor
    asked = {row[0] for table in page.tables for row in table if row[0].startswith("(b)")}
    assert asked >= {"(b)(2)(i)", "(b)(2)(ii)", "(b)(2)(iii)", "(b)(2)(iv)", "(b)(3)(ii)", "(b)(3)(iii)"}
    assert asked >= {f"(b)(4)(i)({letter})" for letter in "ABCDEF"}


def test_the_record_of_processing_has_every_letter_of_article_30(finished: Path) -> None:
    page = Read(as_html(report(finished / "north", view="gdpr")))
    asked = {row[0] for table in page.tables for row in table if row[0].startswith("30(1)")}
    assert asked == {f"30(1)({letter})" for letter in "abcdefg"}
    said = page.answers()
    assert said["Purposes of the processing"] == "Test."
    assert said["Controller, as the ledger names it"] == "north"
    assert said["Filters applied to what left"] == "clip 10"
    assert said["Single hospitals' updates at the recipient, by the plan"] == "deleted after each round"
    assert "3 model updates of 3 arrays" in said["What left, as recorded"]


def test_what_a_person_must_add_is_blank_and_can_be_seen(finished: Path) -> None:
    page = report(finished / "north", view="gdpr")
    blanks = [
        cell
        for section in page.sections
        for item in section.items
        if isinstance(item, Table)
        for row in item.rows
        for cell in row
        if isinstance(cell, Blank)
    ]
    assert len(blanks) > 6
    assert as_html(page).count('<span class="blank">') == len(blanks)
    assert as_markdown(page).count("\\_" * 9) == len(blanks)


# The paper


def test_the_page_loads_nothing_and_forbids_to(finished: Path) -> None:
    page = as_html(report(finished / "toy" / "ledger", view="hipaa"))
    found = Read(page)
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "p", "span", "table", "thead"),
        *("tbody", "tr", "th", "td", "figure", "figcaption", "svg", "text", "rect", "line", "circle", "polyline"),
    }
    assert not [name for _, attributes in found.tags for name in attributes if name in LOADING or name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page
    policies = [attributes.get("content") for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_is_made_for_a4_paper(finished: Path) -> None:
    page = as_html(report(finished / "north"))
    assert "@page { size: A4" in page
    assert "@media print" in page
    assert "table-header-group" in page  # a long table repeats its head on every sheet


@pytest.mark.parametrize("view", ["hipaa", "gdpr"])
def test_no_text_in_a_ledger_becomes_markup(hostile: Path, view: str) -> None:
    page = report(hostile, view=view)
    found = Read(as_html(page))
    assert not {"script", "img", "a"} & {tag for tag, _ in found.tags}
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes or "src" in attributes]
    assert found.text.count(HOSTILE) > 10  # it is there, as text
    assert found.answers()["Purpose"] == HOSTILE


def test_no_text_in_a_ledger_becomes_markdown(hostile: Path) -> None:
    text = as_markdown(report(hostile, view="gdpr"))
    assert "<script" not in text
    assert "<img" not in text
    assert "](https" not in text
    assert not re.search(r"(?<!\\)`", text)
    assert "https://" not in text
    assert "www.evil" not in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1  # no cell was added


def test_markdown_tells_the_same_as_html(finished: Path) -> None:
    page = report(finished / "north", view="hipaa")
    text, found = as_markdown(page), Read(as_html(page))
    heads = [re.sub(r"\\(.)", r"\1", line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")]
    assert heads == found.headings
    cells = [
        [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("| ---")
    ]
    rows = [row for table in found.tables for row in table]
    assert len(cells) == len(rows)
    for one, other in zip(cells, rows, strict=True):
        assert [cell.split("(")[0] for cell in one if "_____" not in cell] == [
            value.split("(")[0] for cell, value in zip(one, other, strict=True) if "_____" not in cell
        ]


def test_a_page_with_a_failed_verdict_is_not_ok() -> None:
    assert Page("t", [Section("s", [Verdict(ok=True, text="a")])]).ok
    assert not Page("t", [Section("s", [Verdict(ok=True, text="a"), Verdict(ok=False, text="b")])]).ok


def test_the_commands_know_the_formats_dialects_and_views_that_there_are() -> None:
    from aggregator import writing_cli
    from aggregator.exports import DIALECTS, FORMATS
    from aggregator.report import VIEWS

    assert set(writing_cli._FORMATS) == set(FORMATS)
    assert set(writing_cli._DIALECTS) == set(DIALECTS)
    assert set(writing_cli._VIEWS) == set(VIEWS)


def test_a_report_whose_name_ends_in_md_is_markdown(finished: Path, tmp_path: Path) -> None:
    from aggregator.audit_cli import main

    for name, start in (("report.md", "# "), ("report.html", "<!DOCTYPE html>")):
        assert main(["report", str(finished / "north"), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)
