"""Store and forward: no line is lost, a log server that is down costs nothing, and what comes twice can be told."""

import contextlib
import errno
import functools
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aggregator.audit_cli import main as audit
from aggregator.exports import DIALECTS, RENDERS, Fact, File, Syslog, facts, forward
from aggregator.exports.cursor import Cursor
from aggregator.exports.syslog import frame
from models.errors import ConfigError, IntramuralError, Rewritten
from models.ledger import Entry, Event, Ledger, Signer, read

SIGNER = Signer.from_seed("north", b"n" * 32)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A small ledger, open for its writer."""
    with Ledger.create(tmp_path / "ledger", SIGNER, {"policy": {}}) as opened:
        grow(opened, 4)
        yield opened


def grow(ledger: Ledger, count: int) -> None:
    for number in range(count):
        ledger.append(Entry(Event.ORDER_REJECTED, {"code": "malformed"}, round=number))


class Memory:
    """A sink that fails when it is told to; `halfway` takes the lines and then seems not to have."""

    name = "memory"

    def __init__(self, fails: int = 0, *, halfway: bool = False) -> None:
        self.fails, self.halfway, self.lines = fails, halfway, list[int]()

    def take(self, facts: Sequence[Fact]) -> None:
        if self.fails:
            self.fails -= 1
            if self.halfway:
                self.lines += [fact.line for fact in facts]
            raise ConnectionRefusedError(111, "Connection refused")
        self.lines += [fact.line for fact in facts]


# The cursor


def test_only_what_was_not_sent_yet_is_sent(ledger: Ledger, tmp_path: Path) -> None:
    sink, cursor = Memory(), tmp_path / "cursor"
    assert forward(ledger.folder, sink, cursor) == 5
    assert forward(ledger.folder, sink, cursor) == 0
    grow(ledger, 3)
    assert forward(ledger.folder, sink, cursor) == 3
    assert sink.lines == [1, 2, 3, 4, 5, 6, 7, 8]
    assert Cursor.decode(cursor.read_bytes()).line == 8


def test_a_sink_that_fails_gets_the_same_lines_again(ledger: Ledger, tmp_path: Path) -> None:
    sink = Memory(fails=3)
    assert forward(ledger.folder, sink, tmp_path / "cursor", pause=0.01) == 5
    assert sink.lines == [1, 2, 3, 4, 5]


def test_a_sink_that_broke_at_the_end_gets_lines_twice_and_never_skips_one(ledger: Ledger, tmp_path: Path) -> None:
    sink = Memory(fails=1, halfway=True)
    forward(ledger.folder, sink, tmp_path / "cursor", pause=0.01)
    assert Counter(sink.lines) == dict.fromkeys(range(1, 6), 2)
    grow(ledger, 1)
    forward(ledger.folder, sink, tmp_path / "cursor")
    assert set(sink.lines) == set(range(1, 7))


def test_patience_counts_the_time_that_attempts_take(ledger: Ledger, tmp_path: Path) -> None:
    class Slow(Memory):
        def take(self, facts: Sequence[Fact]) -> None:
            time.sleep(0.06)
            super().take(facts)

    sink = Slow(fails=100)
    with pytest.raises(IntramuralError, match="did not take line 1"):
        forward(ledger.folder, sink, tmp_path / "cursor", patience=0.1, pause=0.001)
    assert sink.fails >= 98


def test_patience_ends_with_what_to_do_and_without_a_step_of_the_cursor(ledger: Ledger, tmp_path: Path) -> None:
    sink = Memory(fails=10**6)
    before = (ledger.folder / "ledger.jsonl").read_bytes()
    with pytest.raises(IntramuralError, match="did not take line 1: Connection refused") as caught:
        forward(ledger.folder, sink, tmp_path / "cursor", patience=0.05, pause=0.01)
    assert "nothing is lost" in caught.value.hint
    assert not (tmp_path / "cursor").exists()
    grow(ledger, 1)  # the writer never noticed
    assert (ledger.folder / "ledger.jsonl").read_bytes().startswith(before)


def test_a_cursor_that_is_killed_between_sending_and_noting_sends_again(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Memory()

    def die(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("aggregator.exports.cursor.publish", die)
        with pytest.raises(OSError, match="No space"):
            forward(ledger.folder, sink, tmp_path / "cursor")
    forward(ledger.folder, sink, tmp_path / "cursor")
    assert sink.lines == [*range(1, 6), *range(1, 6)]


def test_a_long_ledger_goes_in_batches_and_the_cursor_moves_with_each(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.exports.cursor.BATCH", 2)
    places = []

    class Watching(Memory):
        def take(self, facts: Sequence[Fact]) -> None:
            super().take(facts)
            cursor = tmp_path / "cursor"
            places.append(Cursor.decode(cursor.read_bytes()).line if cursor.exists() else 0)

    assert forward(ledger.folder, Watching(), tmp_path / "cursor") == 5
    assert places == [0, 2, 4]


def test_a_ledger_with_another_past_than_the_exported_one_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    shutil.copytree(ledger.folder, tmp_path / "backup")
    grow(ledger, 1)
    cursor = tmp_path / "cursor"
    forward(ledger.folder, Memory(), cursor)
    with pytest.raises(Rewritten, match="older copy"):
        forward(tmp_path / "backup", Memory(), cursor)
    with Ledger.open(tmp_path / "backup", SIGNER) as other:
        other.append(Entry(Event.ORDER_REJECTED, {"code": "replayed"}))
    with pytest.raises(Rewritten, match="line 6 is not the one that was exported"):
        forward(tmp_path / "backup", Memory(), cursor)


def test_a_cursor_serves_one_ledger_and_one_destination_and_one_process(ledger: Ledger, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    forward(ledger.folder, Memory(), cursor)
    with Ledger.create(tmp_path / "other", Signer.from_seed("south", b"s" * 32)) as other:
        pass
    with pytest.raises(ConfigError, match="is of the ledger north"):
        forward(other.folder, Memory(), cursor)
    with pytest.raises(ConfigError, match="is of an export to memory"):
        forward(ledger.folder, File(tmp_path / "f", RENDERS["cef"]), cursor)
    cursor.write_text("{}")
    with pytest.raises(ConfigError, match="is no valid Cursor"):
        forward(ledger.folder, Memory(), cursor)

    class Nested(Memory):
        def take(self, facts: Sequence[Fact]) -> None:
            with pytest.raises(ConfigError, match="in use by another export"):
                forward(ledger.folder, Memory(), tmp_path / "fresh")
            super().take(facts)

    sink = Nested()
    forward(ledger.folder, sink, tmp_path / "fresh")
    assert sink.lines == [1, 2, 3, 4, 5]


def test_lines_that_are_added_follow_until_it_is_told_to_stop(ledger: Ledger, tmp_path: Path) -> None:
    sink, stop = Memory(fails=1), threading.Event()
    with following(ledger.folder, sink, tmp_path / "cursor", stop):
        wait_for(lambda: len(sink.lines) == 5)
        grow(ledger, 2)
        wait_for(lambda: len(sink.lines) == 7)
    assert sink.lines == [1, 2, 3, 4, 5, 6, 7]


def test_a_file_grows_by_what_is_new(ledger: Ledger, tmp_path: Path) -> None:
    out, cursor = tmp_path / "out.ndjson", tmp_path / "cursor"
    sink = File(out, RENDERS["jsonl"])
    forward(ledger.folder, sink, cursor)
    grow(ledger, 1)
    forward(ledger.folder, sink, cursor)
    assert out.read_bytes().splitlines() == [RENDERS["jsonl"](fact) for fact in facts(read(ledger.folder))]


@pytest.mark.parametrize("written", [0.01, 0.5, 0.99])
def test_a_line_that_was_half_written_is_written_whole_the_next_time(
    ledger: Ledger, tmp_path: Path, written: float
) -> None:
    out, sink = tmp_path / "out.ndjson", File(tmp_path / "out.ndjson", RENDERS["jsonl"])
    whole = b"".join(RENDERS["jsonl"](fact) + b"\n" for fact in facts(read(ledger.folder)))
    before = b"what somebody else wrote\n"
    out.write_bytes(before + whole[: int(len(whole) * written)])  # then it was killed
    sink.take(facts(read(ledger.folder)))
    text = out.read_bytes()
    assert text.endswith(b"\n" + whole)
    assert set(text.removesuffix(whole).splitlines()) <= {*before.splitlines(), *whole.splitlines()}


def test_a_file_that_may_only_be_appended_to_takes_lines(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sink = tmp_path / "out.ndjson", File(tmp_path / "out.ndjson", RENDERS["jsonl"])
    sink.take(facts(read(ledger.folder))[:1])
    opened = Path.open

    def guarded(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if path == out and ("+" in mode or "w" in mode):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))  # as after `chattr +a`
        return opened(path, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", guarded)
    sink.take(facts(read(ledger.folder))[1:])
    assert out.read_bytes().splitlines() == [RENDERS["jsonl"](fact) for fact in facts(read(ledger.folder))]


def test_a_file_whose_last_line_is_not_of_this_export_keeps_it(ledger: Ledger, tmp_path: Path) -> None:
    out = tmp_path / "out.ndjson"
    out.write_bytes(b"a note without an end")
    File(out, RENDERS["jsonl"]).take(facts(read(ledger.folder)))
    assert out.read_bytes().startswith(b"a note without an end")


@contextlib.contextmanager
def following(folder: Path, sink: Any, cursor: Path, stop: threading.Event) -> Iterator[None]:
    """An export that follows the ledger in a thread."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            forward(folder, sink, cursor, follow=True, stop=stop, pause=0.05)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not problems
    assert not thread.is_alive()


def wait_for(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


# The message and its frame


def test_a_frame_is_its_length_and_an_rfc_5424_message(ledger: Ledger) -> None:
    fact = facts(read(ledger.folder))[1]
    length, _, content = frame(fact, RENDERS["dicom"], DIALECTS["ihe"]).partition(b" ")
    assert int(length) == len(content)
    header, _, text = content.partition(b"] ")
    assert re.fullmatch(
        rb"<84>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ north intramural - IHE\+RFC-3881 \[meta sequenceId=\"2\"", header
    )
    assert text == RENDERS["dicom"](fact)
    assert Xml.fromstring(text).tag == "AuditMessage"


def test_the_dialect_of_dicom_has_a_byte_order_mark_and_its_own_msgid(ledger: Ledger) -> None:
    fact = facts(read(ledger.folder))[0]
    content = frame(fact, RENDERS["dicom"], DIALECTS["dicom"])
    assert b"<85>1 " in content
    assert b' DICOM+RFC3881 [meta sequenceId="1"] \xef\xbb\xbf<?xml' in content


def test_a_party_with_an_odd_name_cannot_add_a_field_to_the_header(ledger: Ledger) -> None:
    record = facts(read(ledger.folder))[0].record
    content = frame(Fact(record, "ledger", "nörth ] <13>1 x\n"), RENDERS["cef"], DIALECTS["plain"])
    assert content.split(b" ")[3:5] == [b"nrth]<13>1x", b"intramural"]


@pytest.mark.parametrize(
    "address",
    [
        "siem:6514",
        "syslog://siem:514",
        "syslog+tls://",
        "syslog+tls://siem:port",
        "syslog+tls://siem/path",
        "https://siem",
    ],
)
def test_an_address_without_tls_or_host_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(address)):
        Syslog.to(address, RENDERS["dicom"])


def test_the_port_of_syslog_over_tls_is_the_usual_one() -> None:
    assert Syslog.to("syslog+tls://siem.example.org", RENDERS["dicom"]).name == "syslog+tls://siem.example.org:6514"


def test_a_certificate_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.crt"):
        Syslog.to("syslog+tls://siem", RENDERS["dicom"], ca=tmp_path / "nowhere.crt")


# Receivers that misbehave


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.crt, and server.crt and server.key for localhost."""
    folder = tmp_path_factory.mktemp("pki")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    for name, issuer in (("ca", "ca"), ("server", "ca")):
        alternative = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(keys[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(alternative, critical=False)
        )
        certificate = builder.sign(keys[issuer], hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            keys[name].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


@contextlib.contextmanager
def receiver(pki: Path, behave: Callable[[ssl.SSLSocket], None], buffer: int | None = None) -> Iterator[int]:
    """A log server that serves one connection as it likes; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listening.accept()
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    behave(secure)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(30)


def to(port: int, pki: Path, timeout: float = 30) -> Syslog:
    found = Syslog.to(f"syslog+tls://localhost:{port}", RENDERS["cef"], ca=pki / "ca.crt")
    return Syslog(found.host, found.port, found.context, found.render, timeout=timeout)


def read_all(secure: ssl.SSLSocket) -> bytes:
    found = b""
    while block := secure.recv(65536):
        found += block
    return found


def test_what_a_receiver_read_and_closed_is_taken(ledger: Ledger, pki: Path) -> None:
    got: list[bytes] = []
    lines = facts(read(ledger.folder))
    with receiver(pki, lambda secure: got.append(read_all(secure))) as port:
        to(port, pki).take(lines)
    assert got == [b"".join(frame(fact, RENDERS["cef"], DIALECTS["ihe"]) for fact in lines)]


def test_a_receiver_that_dies_with_bytes_unread_has_taken_nothing(ledger: Ledger, pki: Path) -> None:
    def die(secure: ssl.SSLSocket) -> None:
        secure.recv(1)
        time.sleep(0.2)  # until the rest has come
        secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with receiver(pki, die) as port, pytest.raises(OSError, match="reset"):
        to(port, pki).take(facts(read(ledger.folder)))


def test_a_receiver_that_closes_while_bytes_are_on_the_way_has_taken_nothing(ledger: Ledger, pki: Path) -> None:
    """As one that was killed over a slow line: its end comes before the answer to what came too late."""
    done = threading.Event()

    def leave(secure: ssl.SSLSocket) -> None:
        socket.socket.shutdown(secure, socket.SHUT_WR)
        done.wait(30)

    with receiver(pki, leave, buffer=1) as port:
        with pytest.raises(TimeoutError, match="before it had everything"):
            to(port, pki, timeout=1).take(facts(read(ledger.folder)))
        done.set()


def test_a_receiver_that_never_closes_has_taken_nothing(ledger: Ledger, pki: Path) -> None:
    done = threading.Event()
    with receiver(pki, lambda secure: bool(done.wait(30)) and None) as port:
        with pytest.raises(TimeoutError):
            to(port, pki, timeout=0.3).take(facts(read(ledger.folder)))
        done.set()


def test_a_receiver_with_a_strangers_certificate_gets_nothing(ledger: Ledger, pki: Path, tmp_path: Path) -> None:
    got: list[bytes] = []
    with receiver(pki, lambda secure: got.append(read_all(secure))) as port:
        sink = Syslog.to(f"syslog+tls://localhost:{port}", RENDERS["cef"])  # believes the system's authorities only
        with pytest.raises(IntramuralError, match="did not take line 1"):
            forward(ledger.folder, sink, tmp_path / "cursor", patience=30)  # and does not wait for them
    assert got in ([], [b""])


@pytest.mark.parametrize("address", ["syslog+tls://exa mple..x", f"syslog+tls://{'a' * 64}"])
def test_a_name_that_no_log_server_can_have_is_told(address: str) -> None:
    with pytest.raises(ConfigError, match="idna"):
        Syslog.to(address, RENDERS["cef"])


# Where an export must not write


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "{ledger}/ledger.jsonl"], "--out {ledger}/ledger.jsonl: lies within the ledger"),
        (["--out", "{ledger}/ledger.jsonl", "--cursor", "{tmp}/c"], "lies within the ledger"),
        (["--out", "{tmp}/x", "--cursor", "{ledger}/checkpoint"], "--cursor {ledger}/checkpoint: lies within"),
        (["--out", "{tmp}/same", "--cursor", "{tmp}/same"], "same: is the file that is written"),
        (["--out", "{tmp}"], "--out {tmp}: is a folder"),
        (["--out", "{tmp}", "--cursor", "{tmp}/c"], "--out {tmp}: is a folder"),
    ],
)
def test_an_export_writes_neither_over_a_ledger_nor_over_a_folder_nor_over_its_own_cursor(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    places = {"ledger": ledger.folder, "tmp": tmp_path}
    arguments = [word.format(**places) for word in more]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert audit(["export", str(ledger.folder), "--format", "jsonl", *arguments]) == 1
    assert said.format(**places) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read(ledger.folder).head == ledger.head


# A real log server


def _has_gnutls() -> bool:
    places = [Path("/usr/lib/rsyslog"), Path("/usr/lib64/rsyslog"), *Path("/usr/lib").glob("*/rsyslog")]
    return any((place / "lmnsd_gtls.so").exists() for place in places)


class Rsyslog:
    """rsyslogd in the foreground, with a folder of its own."""

    def __init__(self, folder: Path, pki: Path, port: int) -> None:
        self.out, self.port, self.talk = folder / "out.log", port, folder / "talk"
        self._binary = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if self._binary is None or not _has_gnutls():
            pytest.skip("rsyslogd with gnutls is not here: apt-get install rsyslog rsyslog-gnutls")
        self._pid, self._conf = folder / "pid", folder / "rsyslog.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._conf.write_text(
            f"""
global(workDirectory="{folder}" maxMessageSize="64k" net.enableDNS="off" defaultNetstreamDriver="gtls"
       defaultNetstreamDriverCAFile="{pki}/ca.crt" defaultNetstreamDriverCertFile="{pki}/server.crt"
       defaultNetstreamDriverKeyFile="{pki}/server.key")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")
template(name="whole" type="string" string="%pri% %hostname% %msgid% %structured-data% %msg%\\n")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="audit")
ruleset(name="audit") {{ action(type="omfile" file="{self.out}" template="whole") }}
"""
        )

    def start(self) -> None:
        """Start it; it takes messages when this returns."""
        assert self._binary
        command = [self._binary, "-n", "-f", str(self._conf), "-i", str(self._pid)]
        with self.talk.open("ab") as talk:
            self._process = subprocess.Popen(command, stdout=talk, stderr=talk)
        wait_for(self._listens)

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
            self._process = None

    def lines(self) -> list[str]:
        """What it stored."""
        return self.out.read_text().splitlines() if self.out.exists() else []

    def holds(self, count: int) -> bool:
        """Whether it stored so many."""
        return len(self.lines()) >= count

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.talk.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@pytest.fixture
def rsyslog(tmp_path: Path, pki: Path) -> Iterator[Rsyslog]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "rsyslog"
    folder.mkdir()
    server = Rsyslog(folder, pki, port)
    yield server
    server.stop()


def numbers(lines: list[str]) -> list[int]:
    return [int(found.group(1)) for line in lines if (found := re.search(r'\[meta sequenceId="(\d+)"\]', line))]


def test_a_real_log_server_stores_each_line_once_though_it_came_late_and_went_away(
    ledger: Ledger, rsyslog: Rsyslog, pki: Path, tmp_path: Path
) -> None:
    sink = Syslog.to(f"syslog+tls://localhost:{rsyslog.port}", RENDERS["dicom"], ca=pki / "ca.crt")
    cursor, stop = tmp_path / "cursor", threading.Event()
    with following(ledger.folder, sink, cursor, stop):  # nobody listens yet
        time.sleep(0.3)
        grow(ledger, 3)  # and the writer does not care
        assert not cursor.exists()
        rsyslog.start()
        wait_for(lambda: cursor.exists() and Cursor.decode(cursor.read_bytes()).line == 8)
        wait_for(lambda: rsyslog.holds(8))
        rsyslog.stop()
        grow(ledger, 20)
        time.sleep(0.3)
        rsyslog.start()
        wait_for(lambda: rsyslog.holds(28))
    assert numbers(rsyslog.lines()) == list(range(1, 29))
    for fact, line in zip(facts(read(ledger.folder)), rsyslog.lines(), strict=True):
        head, _, text = line.partition("] ")
        assert head.startswith(f"{85 if fact.line == 1 else 84} north IHE+RFC-3881 ")
        assert text.strip().encode() == RENDERS["dicom"](fact)
    assert Cursor.decode(cursor.read_bytes()).line == 28


def test_a_whole_study_arrives_at_a_real_log_server(
    finished: Path, rsyslog: Rsyslog, pki: Path, tmp_path: Path
) -> None:
    rsyslog.start()
    folder = finished / "toy" / "ledger"
    expected = facts(read(folder))
    for number, name in enumerate(("dicom", "cef", "fhir", "jsonl")):
        sink = Syslog.to(f"syslog+tls://localhost:{rsyslog.port}", RENDERS[name], ca=pki / "ca.crt")
        assert forward(folder, sink, tmp_path / name) == len(expected)
        wait_for(functools.partial(rsyslog.holds, (number + 1) * len(expected)))
        stored = rsyslog.lines()[-len(expected) :]
        texts = [line.partition("] ")[2].strip().encode() for line in stored]
        assert texts == [RENDERS[name](fact) for fact in expected]
