"""A ledger loses nothing that it acknowledged, and shows every change to its past."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import models
from models.canonical import canonical, digest
from models.errors import (
    BadSignature,
    LedgerError,
    Locked,
    Malformed,
    NotAppended,
    Rewritten,
)
from models.ledger import (
    Checkpoint,
    Entry,
    Event,
    Ledger,
    Record,
    Signer,
    Tree,
    Verifier,
    read,
    verify_consistency,
)

NORTH = Signer.from_seed("north", bytes(range(32)))
SOUTH = Signer.from_seed("south", bytes(range(1, 33)))
STUDY = "ab" * 32


def entry(number: int) -> Entry:
    return Entry(Event.UPDATE_OFFERED, {"number": number, "norm": number / 7}, study=STUDY, round=number)


def numbers(records: Any) -> list[int]:
    return [record.body["number"] for record in records[1:]]


def make(folder: Path, lines: int = 7) -> Path:
    with Ledger.create(folder, NORTH, {"clock": "host"}) as ledger:
        for number in range(lines):
            ledger.append(entry(number))
    return folder


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("template") / "ledger")


@pytest.fixture
def folder(tmp_path: Path, template: Path) -> Path:
    """A ledger of eight lines."""
    return Path(shutil.copytree(template, tmp_path / "ledger"))


def recorded(patch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The last argument of every call of `os.<name>` from here on; the calls still happen."""
    real, seen = getattr(os, name), []

    def call(*args: Any) -> Any:
        seen.append(args[-1])
        return real(*args)

    patch.setattr(os, name, call)
    return seen


# What is written


def test_the_first_line_says_whose_ledger_it_is(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH, {"clock": "host"}, origin="north.example/study-1") as ledger:
        first = ledger.records[0]
        assert ledger.head.origin == "north.example/study-1"
    assert first.event is Event.LOG_OPENED
    assert first.prev == "0" * 64
    assert (first.body["origin"], first.body["vkey"]) == ("north.example/study-1", NORTH.vkey)
    assert first.body["clock"] == "host"
    assert first.body["software"]["name"] == "intramural"


def test_a_line_is_canonical_json_of_exactly_the_record(folder: Path) -> None:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    opened = read(folder)
    for seq, (line, record) in enumerate(zip(lines, opened.records, strict=True)):
        values = json.loads(line)
        assert set(values) == {"v", "seq", "prev", "ts", "salt", "event", "study", "round", "body"}
        assert canonical(values) == line == record.line
        assert (values["v"], values["seq"]) == (1, seq)
        assert values["prev"] == (opened.records[seq - 1].leaf.hex() if seq else "0" * 64)


def test_what_was_appended_is_what_is_read(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        body = {"large": 1e16, "text": "Zürich\u2028\n", "list": [1, 2.5, None, True], "empty": {}}
        written = ledger.append(Entry("round.void", body, round=3), entry(0))
        assert ledger.records[1:] == written
        head, note = ledger.head, ledger.note
    opened = read(tmp_path / "ledger", NORTH.verifier)
    assert list(opened.records[1:]) == written
    assert written[0].body == body
    assert (written[0].event, written[0].study, written[0].round) == (Event.ROUND_VOID, None, 3)
    assert (opened.head, opened.note, opened.unsigned, opened.incomplete) == (head, note, 0, False)
    assert Checkpoint.open(note, NORTH.verifier) == Checkpoint("north", 3, opened.tree.root())


def test_no_two_lines_have_the_same_salt(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        ledger.append(*[Entry(Event.ROUND_VOID)] * 20)
        assert len({record.salt for record in ledger.records}) == 21


def test_several_entries_are_one_write_and_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        synced = recorded(monkeypatch, "fdatasync")
        written = recorded(monkeypatch, "write")
        ledger.append(*map(entry, range(5)))
        assert len(synced) == 1
        assert written[0] == b"".join(record.line + b"\n" for record in ledger.records[1:])
        assert len(written) == 2, "the lines, then the checkpoint"
        assert ledger.append() == []
        assert len(synced) == 1
        assert ledger.head.size == 6


def test_a_line_is_on_the_disk_before_the_head_that_covers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    for name in ("write", "fdatasync", "fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (names.append(name), real(*args))[1])
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        names.clear()
        ledger.append(entry(0))
        assert names == ["write", "fdatasync", "write", "fsync", "rename", "fsync"]
        names.clear()
        ledger.store(b"{}")
        assert names == ["write", "fsync", "rename", "fsync"]


def test_old_heads_are_proven_to_be_the_past_of_new_ones(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        heads = [ledger.head]
        for number in range(9):
            ledger.append(entry(number))
            heads.append(ledger.head)
        for head in heads:
            proof = ledger.tree.consistency(head.size, ledger.head.size)
            assert verify_consistency(head.size, ledger.head.size, head.root, ledger.head.root, proof)


@pytest.mark.parametrize(
    "wrong",
    [
        Entry("update.forgotten"),
        Entry(Event.LOG_OPENED),
        Entry("log.opened"),
        Entry(Event.ROUND_VOID, {"loss": float("nan")}),
        Entry(Event.ROUND_VOID, {"path": Path("x")}),
        Entry(Event.ROUND_VOID, {"long": "x" * 2**20}),
        Entry(Event.ROUND_VOID, study="lgg-2026"),
        Entry(Event.ROUND_VOID, round=-1),
        Entry(Event.ROUND_VOID, round=True),
        Entry(Event.ROUND_VOID, ["not", "an", "object"]),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_entry_is_refused_and_leaves_the_ledger_usable(tmp_path: Path, wrong: Entry) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        with pytest.raises(ValueError, match=str(wrong.event)):
            ledger.append(entry(0), wrong)
        assert ledger.head.size == 1
        ledger.append(entry(1))
    assert numbers(read(tmp_path / "ledger").records) == [1]


def test_the_first_line_cannot_be_given_another_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vkey"):
        Ledger.create(tmp_path / "ledger", NORTH, {"vkey": SOUTH.vkey})
    assert not list(tmp_path.iterdir())


def test_a_ledger_is_never_overwritten(folder: Path) -> None:
    before = (folder / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(folder, NORTH)
    (folder / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(folder, NORTH)
    replace(folder / "ledger.jsonl", before)
    assert read(folder).head.size == 8


def test_a_ledger_goes_on_where_it_was_left(folder: Path) -> None:
    with Ledger.open(folder, NORTH) as ledger:
        assert numbers(ledger.records) == list(range(7))
        ledger.append(entry(7))
    assert numbers(read(folder, NORTH.verifier).records) == list(range(8))


def test_a_closed_ledger_refuses_to_append(folder: Path) -> None:
    ledger = Ledger.open(folder, NORTH)
    ledger.close()
    ledger.close()
    with pytest.raises(NotAppended, match="it is closed"):
        ledger.append(entry(7))
    with pytest.raises(NotAppended, match="it is closed"):
        ledger.store(b"{}")


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        threads = [
            threading.Thread(target=lambda base=base: [ledger.append(entry(base + n)) for n in range(5)])
            for base in (0, 10, 20, 30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = [base + number for base in (0, 10, 20, 30) for number in range(5)]
    assert sorted(numbers(read(tmp_path / "ledger").records)) == expected


# Manifests


def test_a_manifest_is_kept_under_its_digest(folder: Path) -> None:
    manifest = canonical([{"name": "conv.weight", "shape": [8, 3]}])
    with Ledger.open(folder, NORTH) as ledger:
        name = ledger.store(manifest)
        assert name == ledger.store(manifest) == digest(manifest)
        assert ledger.manifest(name) == manifest
    assert read(folder).manifest(name) == manifest
    (folder / "manifests" / f"{name}.json").write_bytes(manifest.replace(b"8", b"9"))
    with pytest.raises(Rewritten, match=name):
        read(folder).manifest(name)
    (folder / "manifests" / f"{name}.json").unlink()
    with pytest.raises(LedgerError, match=name):
        read(folder).manifest(name)


@pytest.mark.parametrize("name", ["../checkpoint", "", "AB" * 32, "ab" * 32 + "\n", "ab" * 31 + "/."])
def test_a_manifest_name_cannot_walk_through_the_disk(folder: Path, name: str) -> None:
    with pytest.raises(Malformed):
        read(folder).manifest(name)


# What a reader finds


@pytest.mark.parametrize("file", ["ledger.jsonl", "checkpoint"])
def test_a_change_of_any_single_byte_is_found(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    missed = []
    with (folder / file).open("r+b", buffering=0) as changing:
        for place, byte in enumerate(content):
            for changed in {byte ^ 0x01, byte ^ 0x20, byte ^ 0x80, 0x0A, 0x00} - {byte}:
                os.pwrite(changing.fileno(), bytes([changed]), place)
                try:
                    read(folder, NORTH.verifier)
                    missed.append((place, changed))
                except (Rewritten, BadSignature, Malformed):
                    pass
            os.pwrite(changing.fileno(), bytes([byte]), place)
    assert not missed
    assert read(folder, NORTH.verifier).head.size == 8


@pytest.mark.parametrize("line", range(8))
def test_a_changed_line_is_named(folder: Path, line: int) -> None:
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"v":1', b'"v":2')
    replace(folder / "ledger.jsonl", b"".join(lines))
    with pytest.raises(Rewritten, match=rf"ledger\.jsonl: line {line + 1} has an impossible v"):
        read(folder)


def forged(record: Record, prev: str, **changes: Any) -> Record:
    return Record.parse(canonical({**record.values(), "prev": prev, **changes}))


def rechained(records: list[Record]) -> bytes:
    """Lines in a new order or with new content, with the numbers and hashes made to fit again."""
    result: list[Record] = []
    for seq, record in enumerate(records):
        result.append(forged(record, result[-1].leaf.hex() if seq else "0" * 64, seq=seq))
    return b"".join(record.line + b"\n" for record in result)


def raw(records: list[Record]) -> bytes:
    return b"".join(record.line + b"\n" for record in records)


ATTACKS: dict[str, Callable[[list[Record]], bytes]] = {
    "a line is removed": lambda records: raw(records[:3] + records[4:]),
    "a line is removed and the rest chained again": lambda records: rechained(records[:3] + records[4:]),
    "the first line is removed": lambda records: raw(records[1:]),
    "the last line is removed": lambda records: raw(records[:-1]),
    "the second half is removed": lambda records: raw(records[:4]),
    "everything is removed": lambda records: b"",
    "two lines change places": lambda records: raw([*records[:3], records[4], records[3], *records[5:]]),
    "two lines change places and are chained again": lambda records: rechained(
        [*records[:3], records[4], records[3], *records[5:]]
    ),
    "a line is repeated": lambda records: raw([*records[:4], records[3], *records[4:]]),
    "a line is invented inside": lambda records: rechained([*records[:4], records[3], *records[4:]]),
    "a line is back-dated": lambda records: raw(
        [*records[:3], forged(records[3], records[3].prev, ts="2020-01-01T00:00:00Z"), *records[4:]]
    ),
    "the last line is edited": lambda records: raw(
        [*records[:-1], forged(records[-1], records[-1].prev, body={"number": 99})]
    ),
    "a line is edited and the rest chained again": lambda records: rechained(
        [*records[:3], forged(records[3], records[3].prev, body={"number": 99}), *records[4:]]
    ),
    "the first line is given to another": lambda records: rechained(
        [forged(records[0], "0" * 64, body={**records[0].body, "vkey": SOUTH.vkey}), *records[1:]]
    ),
    "the ledger is opened twice": lambda records: rechained([*records, records[0]]),
    "an empty line is added": lambda records: raw(records) + b"\n",
    "an unknown event is added": lambda records: (
        raw(records)
        + forged(records[-1], records[-1].leaf.hex(), seq=8).line.replace(b"update.offered", b"update.invented")
        + b"\n"
    ),
    "a line with another number is added": lambda records: (
        raw(records) + forged(records[-1], records[-1].leaf.hex(), seq=9).line + b"\n"
    ),
    "an unchained line is added": lambda records: (
        raw(records) + forged(records[-1], records[-2].leaf.hex(), seq=8).line + b"\n"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_without_the_key_is_found_by_readers_and_by_the_owner(folder: Path, attack: str) -> None:
    replace(folder / "ledger.jsonl", ATTACKS[attack](list(read(folder).records)))
    before = (folder / "ledger.jsonl").read_bytes()
    for verifier in (NORTH.verifier, None):
        with pytest.raises((Rewritten, BadSignature), match=r"line|signed"):
            read(folder, verifier)
    with pytest.raises(Rewritten):
        Ledger.open(folder, NORTH)
    assert (folder / "ledger.jsonl").read_bytes() == before, "the evidence was changed"


def test_a_ledger_chained_again_and_signed_with_another_key_is_found(folder: Path) -> None:
    records = list(read(folder).records)
    body = {**records[0].body, "vkey": SOUTH.vkey}
    lines = rechained([forged(records[0], "0" * 64, body=body), *records[1:3], *records[4:]])
    tree = Tree()
    for line in lines.splitlines():
        tree.append(Record.parse(line).leaf)
    replace(folder / "ledger.jsonl", lines)
    replace(folder / "checkpoint", Checkpoint("north", tree.size, tree.root()).sign(SOUTH).encode())
    assert read(folder).head.size == 7, "without the enrolled key a ledger can only agree with itself"
    with pytest.raises(BadSignature, match="not signed by north"):
        read(folder, NORTH.verifier)
    with pytest.raises(Rewritten):
        Ledger.open(folder, NORTH)


def test_a_signed_head_of_another_ledger_of_the_same_key_is_found(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Ledger.create(other, NORTH, origin="north.example/other").close()
    replace(folder / "checkpoint", (other / "checkpoint").read_bytes())
    with pytest.raises(Rewritten, match="line 1 names another origin"):
        read(folder, NORTH.verifier)


@pytest.mark.parametrize("file", ["ledger.jsonl", "checkpoint"])
def test_a_missing_file_is_found(folder: Path, file: str) -> None:
    (folder / file).unlink()
    for attempt in (lambda: read(folder), lambda: Ledger.open(folder, NORTH)):
        with pytest.raises(Rewritten, match=f"{file}: is missing"):
            attempt()


@pytest.mark.parametrize("file", ["ledger.jsonl", "checkpoint"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(LedgerError, match=f"{file}: is no regular file"):
        read(folder)


def test_a_manifest_without_an_end_does_not_fill_the_memory(folder: Path) -> None:
    with Ledger.open(folder, NORTH) as ledger:
        name = ledger.store(b"{}")
    path = folder / "manifests" / f"{name}.json"
    os.truncate(path, 2**40)
    with pytest.raises(LedgerError, match="is longer than 67108864 bytes"):
        read(folder).manifest(name)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(LedgerError, match="is no regular file"):
        read(folder).manifest(name)


def test_a_line_without_an_end_does_not_fill_the_memory_and_is_not_read(folder: Path) -> None:
    os.truncate(folder / "ledger.jsonl", 2**40)
    opened = read(folder)
    assert (opened.head.size, opened.incomplete) == (8, True)


def test_where_there_is_no_ledger_it_says_so(tmp_path: Path) -> None:
    for attempt in (lambda: read(tmp_path / "none"), lambda: Ledger.open(tmp_path / "none", NORTH)):
        with pytest.raises(LedgerError, match="there is no ledger here"):
            attempt()
    with pytest.raises(LedgerError, match="there is no ledger here"):
        read(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_key_that_is_not_the_ledgers_cannot_write_it(folder: Path) -> None:
    with pytest.raises(Rewritten) as caught:
        Ledger.open(folder, SOUTH)
    assert "begins with another key" in caught.value.hint


def test_whoever_damages_the_signature_is_not_told_of_another_key(folder: Path) -> None:
    note = (folder / "checkpoint").read_text()
    replace(folder / "checkpoint", note.replace("— north ", "— south ").encode())
    with pytest.raises(BadSignature) as caught:
        read(folder, NORTH.verifier)
    assert "keep the folder as it is" in caught.value.hint


def test_a_reader_needs_neither_the_key_nor_write_access(folder: Path) -> None:
    with Ledger.open(folder, NORTH) as ledger:
        before = {path.name for path in folder.iterdir()}
        opened = read(folder, Verifier.parse(NORTH.vkey))
        assert opened.head == ledger.head
        assert {path.name for path in folder.iterdir()} == before


def test_a_ledger_can_be_checked_without_the_heavy_libraries() -> None:
    code = "import sys, models.ledger; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "models.ledger.log" in done.stdout.split()
    assert not {"flwr", "torch", "numpy", "pandas", "pydantic", "pydicom", "monai"} & set(done.stdout.split())


# Crashes


def test_a_crash_between_line_and_checkpoint_loses_nothing(folder: Path) -> None:
    older = (folder / "checkpoint").read_bytes()
    with Ledger.open(folder, NORTH) as ledger:
        ledger.append(entry(7), entry(8))
    replace(folder / "checkpoint", older)
    opened = read(folder)
    assert (opened.head.size, len(opened.records), opened.unsigned, opened.incomplete) == (8, 8, 2, False)
    with Ledger.open(folder, NORTH) as ledger:
        assert numbers(ledger.records) == list(range(9))
        ledger.append(entry(9))
    opened = read(folder, NORTH.verifier)
    assert (numbers(opened.records), opened.unsigned) == (list(range(10)), 0)


@pytest.mark.parametrize("cut", [1, 2, 100, -2, -1])
def test_a_line_that_a_crash_left_incomplete_is_cut(folder: Path, cut: int) -> None:
    older = (folder / "checkpoint").read_bytes()
    size = (folder / "ledger.jsonl").stat().st_size
    with Ledger.open(folder, NORTH) as ledger:
        ledger.append(entry(7))
    content = (folder / "ledger.jsonl").read_bytes()
    replace(folder / "checkpoint", older)
    replace(folder / "ledger.jsonl", content[:size] + content[size:][:cut])
    opened = read(folder)
    assert (numbers(opened.records), opened.unsigned, opened.incomplete) == (list(range(7)), 0, True)
    with Ledger.open(folder, NORTH) as ledger:
        assert numbers(ledger.records) == list(range(7))
        assert (folder / "ledger.jsonl").read_bytes() == content[:size]
        ledger.append(entry(8))
    opened = read(folder)
    assert (numbers(opened.records), opened.incomplete) == ([*range(7), 8], False)


def test_an_incomplete_line_that_was_signed_is_not_cut_but_refused(folder: Path) -> None:
    content = (folder / "ledger.jsonl").read_bytes()
    replace(folder / "ledger.jsonl", content[:-1])
    for attempt in (lambda: read(folder), lambda: Ledger.open(folder, NORTH)):
        with pytest.raises(Rewritten, match="line 8 is missing"):
            attempt()
    assert (folder / "ledger.jsonl").read_bytes() == content[:-1]


def test_a_line_that_somebody_else_appended_is_not_signed(folder: Path) -> None:
    records = list(read(folder).records)
    invented = forged(records[-1], records[-1].leaf.hex(), seq=8, body={"number": 99})
    replace(folder / "ledger.jsonl", raw([*records, invented]))
    assert read(folder).unsigned == 1
    with pytest.raises(Rewritten, match="line 9 was not written with this key"):
        Ledger.open(folder, NORTH)
    assert read(folder).unsigned == 1


WRITER = """
import sys
from pathlib import Path
from models.ledger import Entry, Event, Ledger, Signer
ledger = Ledger.open(Path(sys.argv[1]), Signer.from_seed("north", bytes(range(32))))
number = len(ledger.records) - 1
while True:
    ledger.append(*[Entry(Event.UPDATE_OFFERED, {"number": number + more}) for more in range(3)])
    number += 3
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_acknowledged(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    for lines in (1, 2, 4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        with writer.stdout:
            told = [int(writer.stdout.readline()) for _ in range(lines)]
            writer.send_signal(signal.SIGKILL)
            told += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        with Ledger.open(folder, NORTH) as ledger:
            found = numbers(ledger.records)
        assert found == list(range(len(found)))
        assert len(found) >= told[-1]


# Faults; test_crash.py has all of them


@pytest.mark.parametrize("name", ["write", "fdatasync", "fsync", "rename"])
def test_after_an_error_of_the_disk_a_writer_must_be_reopened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*args: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    ledger = Ledger.open(folder, NORTH)
    head = ledger.head
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(NotAppended, match="Input/output error"):
            ledger.append(entry(7))
    before = (folder / "ledger.jsonl").read_bytes()
    for attempt in (lambda: ledger.append(entry(8)), lambda: ledger.store(b"{}")):
        with pytest.raises(NotAppended) as caught:
            attempt()
        assert caught.value.hint == "open the ledger again"
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert (ledger.head, numbers(ledger.records)) == (head, list(range(7)))
    ledger.close()
    with Ledger.open(folder, NORTH) as ledger:
        ledger.append(entry(9))
        assert numbers(ledger.records) in ([*range(7), 9], [*range(8), 9])


def test_an_interrupted_append_is_not_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    with Ledger.open(folder, NORTH) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ledger.append(entry(7))
        with pytest.raises(NotAppended):
            ledger.append(entry(8))


def test_lines_found_unsigned_are_written_to_the_disk_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After a failed sync the system shows lines that the disk may not have, and "sync" them.
    size = (folder / "ledger.jsonl").stat().st_size
    with Ledger.open(folder, NORTH) as ledger, monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda number: (_ for _ in ()).throw(OSError(errno.EIO, "EIO")))
        with pytest.raises(NotAppended):
            ledger.append(entry(7))
    with monkeypatch.context() as patch:
        written, cut = recorded(patch, "write"), recorded(patch, "ftruncate")
        Ledger.open(folder, NORTH).close()
    assert cut == [size]
    assert written[0] == read(folder).records[-1].line + b"\n"


# Two writers


def test_a_second_writer_is_refused(folder: Path) -> None:
    with Ledger.open(folder, NORTH) as ledger:
        with pytest.raises(Locked, match="another process"):
            Ledger.open(folder, NORTH)
        ledger.append(entry(7))
    Ledger.open(folder, NORTH).close()


def test_a_writer_in_another_process_is_refused(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(models.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(folder)]
    with Ledger.open(folder, NORTH):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Locked" in done.stderr


def test_a_failed_open_gives_the_lock_back(folder: Path) -> None:
    with pytest.raises(Rewritten):
        Ledger.open(folder, SOUTH)
    Ledger.open(folder, NORTH).close()


@pytest.mark.parametrize("change", ["longer", "shorter", "replaced", "removed"])
def test_a_file_changed_under_an_open_ledger_stops_the_writer(folder: Path, change: str) -> None:
    path = folder / "ledger.jsonl"
    content = path.read_bytes()
    with Ledger.open(folder, NORTH) as ledger:
        if change == "longer":
            replace(path, content + b"x")
        elif change == "shorter":
            replace(path, content[:-10])
        else:
            path.rename(folder / "moved")
            if change == "replaced":
                replace(path, content)
        with pytest.raises((Rewritten, NotAppended)):
            ledger.append(entry(7))
        with pytest.raises(NotAppended):
            ledger.append(entry(7))
    assert not (folder / "moved").exists() or (folder / "moved").read_bytes() == content


def test_a_ledger_inherited_by_a_forked_process_does_not_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(folder, NORTH) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(NotAppended, match="another process"):
                ledger.append(entry(7))
        ledger.append(entry(7))


def test_a_round_of_a_thousand_hospitals_is_one_line(tmp_path: Path) -> None:
    inputs = [{"silo": f"hospital-{n}", "xid": "a" * 64, "digest": "b" * 64, "weight": 34.5} for n in range(1000)]
    with Ledger.create(tmp_path / "ledger", NORTH) as ledger:
        ledger.append(Entry(Event.AGGREGATED, {"inputs": inputs}, "c" * 64, 1))
    assert read(tmp_path / "ledger").records[-1].body["inputs"] == inputs
