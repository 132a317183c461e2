"""The machine's program that gets certificates, against the daemon's real port: kills, lost answers, wrong daemons."""

import contextlib
import datetime
import functools
import http.server
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from beds.hosts.enrolling import MINE, EnrolmentBed, enrolment_bed
from beds.ports import free_port
from bentpipe.daemon.image.files import SECRET, ImageFile
from bentpipe.daemon.image.user_data import own_config
from bentpipe.daemon.pki.authority import MachineName, key_hash_of, pem_of
from bentpipe.daemon.pki.enrolment import Bootstrap
from bentpipe.daemon.responder import enrol
from bentpipe.daemon.responder.enrol import EnrolmentError, Identity, Metadata, Restarts

PROGRAM = Path(enrol.__file__)
DEADLINE_S = 60.0
KILLS = 12
KILL_WITHIN_S = 0.4


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[EnrolmentBed]:
    async with enrolment_bed(tmp_path, free_port()) as found:
        yield found


class Machine:
    """A machine's disk, and the program on it."""

    def __init__(self, folder: Path, given: Bootstrap) -> None:
        self.given = given
        self.enrolment = folder / "enrolment.json"
        self.enrolment.write_text(given.to_json())
        self.tls = folder / "tls"
        self.identity = self.tls / "identity.pem"

    def start(self, *more: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = (sys.executable, "-I", "-S", str(PROGRAM), str(self.enrolment), str(self.tls), *more)
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    @contextlib.contextmanager
    def running(self, *more: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        with self.start(*more, environment=environment) as process:
            try:
                yield process
            finally:
                process.kill()

    def due(self) -> None:
        (self.tls / "renewal.json").write_text('{"at": 0}')

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        found = self.certificate.public_key()
        assert isinstance(found, ec.EllipticCurvePublicKey)
        return found

    @property
    def certificate(self) -> x509.Certificate:
        # A context loads both, and compares them.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.identity)
        return x509.load_pem_x509_certificates(self.identity.read_bytes())[0]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.sleep(0.02)


async def test_the_first_certificate_and_the_next(bed: EnrolmentBed, tmp_path: Path) -> None:
    given = await bed.launch()
    machine = Machine(tmp_path, given)
    with machine.running():
        await until(machine.identity.exists)
        first = machine.certificate
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [MachineName("test", MINE, given.launch).dns]
        # renewal.json is the last that it writes, by a rename; then it removes the key's other name.
        await until((machine.tls / "renewal.json").exists)
        await until(lambda: not (machine.tls / "next-key.pem").exists())
        assert {each.name for each in machine.tls.iterdir()} >= {"identity.pem", "ca.pem", "renewal.json"}
        assert machine.tls.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o777 for each in machine.tls.iterdir()} == {0o600}
        machine.due()
        await until(lambda: machine.certificate != first)
        assert machine.certificate.public_key() != first.public_key(), "each certificate has a key of its own"
        await until(lambda: not (machine.tls / "next-key.pem").exists())
    assert bed.ca.enrolments.results == {("enrol", "ok"): 1, ("renew", "ok"): 1}


async def test_a_program_that_is_killed_at_any_moment_ends_up_with_one_identity(
    bed: EnrolmentBed, tmp_path: Path
) -> None:
    """Loss of power in the middle: the machine has to come back with the key that it had asked for."""
    machine = Machine(tmp_path, await bed.launch())
    before: x509.Certificate | None = None
    for _ in range(3):
        for _ in range(KILLS):
            with machine.running():
                await trio.sleep(random.uniform(0.05, KILL_WITHIN_S))
        with machine.running():
            await until(functools.partial(_is_another, machine, before))
            await until((machine.tls / "renewal.json").exists)
        before = machine.certificate
        row = await bed.ca.issued._store.identity(MINE)
        assert row is not None
        assert row.enrolled is not None
        assert row.enrolled.key_hash == key_hash_of(machine.public_key)
        machine.due()
    assert {kind for kind, result in bed.ca.enrolments.results if result != "ok"} == set()


async def test_a_second_program_waits_for_the_first(bed: EnrolmentBed, tmp_path: Path) -> None:
    """Two that work on one folder would ask for two keys, which looks like theft."""
    machine = Machine(tmp_path, await bed.launch())
    with machine.running(), machine.running(), machine.running():
        await until(machine.identity.exists)
        await until((machine.tls / "renewal.json").exists)
        await trio.sleep(1.0)
    assert bed.ca.enrolments.results == {("enrol", "ok"): 1}


def _is_another(machine: Machine, before: x509.Certificate | None) -> bool:
    return machine.identity.exists() and machine.certificate != before


async def test_an_answer_that_is_lost_is_asked_for_again(bed: EnrolmentBed, tmp_path: Path) -> None:
    given = await bed.launch()
    lost = threading.Event()
    with relay_that_loses_one_answer(bed.port, lost) as port:
        machine = Machine(tmp_path, _with_address(given, f"127.0.0.1:{port}"))
        with machine.running():
            await until(machine.identity.exists)
    assert lost.is_set()
    assert bed.ca.enrolments.results == {("enrol", "ok"): 2}, "one key asked twice"


def _with_address(given: Bootstrap, address: str) -> Bootstrap:
    return Bootstrap(address, given.satellite, given.launch, given.token, given.trusted)


@contextlib.contextmanager
def relay_that_loses_one_answer(target: int, lost: threading.Event) -> Iterator[int]:
    """Forwards connections. Of the first, it closes the machine's side when the daemon has answered the request."""

    def serve(server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", target)) as far:
                pump = threading.Thread(target=_copy, args=(near, far))
                pump.start()
                # The handshake is answered by some KiB; what comes after the request is the certificate.
                _copy(far, near, lost)
                pump.join()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _copy(source: socket.socket, sink: socket.socket, lost: threading.Event | None = None) -> None:
    moved = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            moved += len(data)
            if lost is not None and not lost.is_set() and b"\x17\x03\x03" in data[:3] and moved > 2_000:
                lost.set()
                break
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


async def test_a_token_that_another_key_has_used_gives_nothing_and_is_told_once(
    bed: EnrolmentBed, tmp_path: Path
) -> None:
    given = await bed.launch()
    machine = Machine(tmp_path, given)
    with machine.running():
        await until(machine.identity.exists)
    folder = tmp_path / "thief"
    folder.mkdir()
    thief = Machine(folder, given)
    with thief.running() as process:
        await until(lambda: bed.ca.enrolments.results["enrol", "second"] > 0)
    assert process.stderr is not None
    assert not thief.identity.exists()


async def test_another_server_does_not_get_the_token(bed: EnrolmentBed, tmp_path: Path) -> None:
    """A server with a certificate of another authority, at the daemon's address."""
    given = await bed.launch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    async with enrolment_bed(foreign, free_port()) as other:
        machine = Machine(tmp_path, _with_address(given, f"127.0.0.1:{other.port}"))
        with machine.running() as process:
            assert process.stderr is not None
            line = await trio.to_thread.run_sync(process.stderr.readline)
            assert "certificate verify failed" in line
            await trio.sleep(1.0)
        assert other.ca.enrolments.results == {}
        assert not machine.identity.exists()


async def test_a_daemon_that_comes_later_is_found(tmp_path: Path) -> None:
    port = free_port()
    async with enrolment_bed(tmp_path, port) as bed:
        given = await bed.launch()
    machine = Machine(tmp_path, given)
    with machine.running():
        await trio.sleep(0.5)
        assert not machine.identity.exists()
        async with enrolment_bed(tmp_path, port):
            await until(machine.identity.exists)


async def test_systemd_is_told_once_there_is_a_certificate(bed: EnrolmentBed, tmp_path: Path) -> None:
    machine = Machine(tmp_path, await bed.launch())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        with machine.running(environment={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}):
            notified.settimeout(DEADLINE_S)
            assert await trio.to_thread.run_sync(notified.recv, 100) == b"READY=1"
            assert machine.identity.exists()


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b"x" * 300_000, b'{"certificate": 1, "trusted": "", "renew_after_s": 1}']
)
def test_an_answer_that_cannot_be_used_changes_nothing(
    tmp_path: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolment = tmp_path / "enrolment.json"
    enrolment.write_text('{"address": "127.0.0.1:1", "satellite": "a/b", "launch": "1", "token": "t", "trusted": ""}')
    identity = Identity(str(enrolment), str(tmp_path / "tls"))
    os.close(identity.hold_alone())
    monkeypatch.setattr(identity, "_call", lambda *_: enrol._json(answer))
    with pytest.raises(EnrolmentError):
        identity.ask()
    key = (tmp_path / "tls/next-key.pem").read_bytes()
    with pytest.raises(EnrolmentError):
        identity.ask()
    assert (tmp_path / "tls/next-key.pem").read_bytes() == key, "the same key is asked for again"
    assert identity.is_due()


async def test_a_machine_that_slept_past_its_certificate_renews_before_builds_start(tmp_path: Path) -> None:
    port = free_port()
    async with enrolment_bed(tmp_path, port) as bed:
        machine = Machine(tmp_path, await bed.launch())
        with machine.running():
            await until((machine.tls / "renewal.json").exists)
        key = machine.identity.read_text().partition("-----BEGIN CERTIFICATE")[0]
        name = MachineName("test", MINE, machine.given.launch)
        authority, now = bed.ca.keeper.signing.authority, datetime.datetime.now(datetime.UTC)
        ended = authority.issue_machine(machine.public_key, name, now - datetime.timedelta(days=2), 86_400.0)
        machine.identity.write_text(key + pem_of([ended]))
        machine.due()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(1.0)
        with machine.running(environment={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}):
            with pytest.raises(TimeoutError):
                await trio.to_thread.run_sync(notified.recv, 100)
            notified.settimeout(DEADLINE_S)
            async with enrolment_bed(tmp_path, port):
                assert await trio.to_thread.run_sync(notified.recv, 100) == b"READY=1"
                assert machine.certificate.not_valid_after_utc > now


# -- restarts ----------------------------------------------------------------------------------------------------------

TCP = "  sl  local_address rem_address   st\n   0: 0100007F:{port:04X} 00000000:0000 {state} 0\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's root, with a systemctl that notes what it is asked for."""
    for name in ("sys/fs/cgroup/steps", "proc/net", "run", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/steps/cgroup.events").write_text("populated 0\nfrozen 0\n")
    (tmp_path / "proc/net/tcp").write_text(TCP.format(port=8372, state="0A"))
    script = tmp_path / "bin/systemctl"
    lines = (
        f'if [ "$1" = is-active ]; then cat {tmp_path}/state; exit 3; fi',
        f"test ! -e {tmp_path}/broken",
        f'echo "$@" >> {tmp_path}/asked',
    )
    script.write_text("\n".join(("#!/bin/sh", "set -e", *lines, "")))
    (tmp_path / "state").write_text("active\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def asked(root: Path) -> list[str]:
    path = root / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_a_unit_is_restarted_once_when_nobody_uses_it(root: Path) -> None:
    restarts = Restarts("buildkitd.service", 8372, "steps", str(root))
    restarts.try_now()
    assert asked(root) == [], "nothing was renewed"
    restarts.want()
    events, tcp6 = root / "sys/fs/cgroup/steps/cgroup.events", root / "proc/net/tcp6"
    events.write_text("populated 1\nfrozen 0\n")
    restarts.try_now()
    events.write_text("populated 0\nfrozen 0\n")
    tcp6.write_text(TCP.format(port=8372, state="01"))
    restarts.try_now()
    assert asked(root) == []
    tcp6.write_text(TCP.format(port=8373, state="01"))
    (root / "broken").touch()
    restarts.try_now()
    (root / "broken").unlink()
    again = Restarts("buildkitd.service", 8372, "steps", str(root))  # the program itself was restarted meanwhile
    again.try_now()
    again.try_now()
    assert asked(root) == ["try-restart buildkitd.service"]


@pytest.mark.parametrize(("state", "wanted"), [("inactive", 0), ("failed", 0), ("activating", 1), ("active", 1)])
def test_a_unit_that_starts_later_reads_the_new_certificate_anyway(root: Path, state: str, wanted: int) -> None:
    (root / "state").write_text(f"{state}\n")
    restarts = Restarts("buildkitd.service", 8372, "steps", str(root))
    restarts.want()
    restarts.try_now()
    assert len(asked(root)) == wanted


def test_a_unit_whose_use_is_not_known_is_left_alone(root: Path) -> None:
    restarts = Restarts("buildkitd.service", 8372, "steps", str(root))
    restarts.want()
    (root / "proc/net/tcp").unlink()
    (root / "proc/net/tcp").mkdir()  # reading it fails, for root too
    restarts.try_now()
    assert asked(root) == []
    (root / "proc/net/tcp").rmdir()
    (root / "sys/fs/cgroup/steps/cgroup.events").unlink()
    restarts.try_now()
    assert asked(root) == ["try-restart buildkitd.service"], "no step has run yet"


def test_the_wall_clock_says_when_a_certificate_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a resume it jumps; a timer that stood still meanwhile would not tell."""
    identity = Identity("none", str(tmp_path))
    assert identity.is_due(), "there is none"
    (tmp_path / "identity.pem").touch()
    for text in ("", "x", "[]", '{"at": "soon"}', '{"at": null}'):
        (tmp_path / "renewal.json").write_text(text)
        assert identity.is_due()
    (tmp_path / "renewal.json").write_text(json.dumps({"at": time.time() + 1000}))
    assert not identity.is_due()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1001)
    assert identity.is_due()


class MetadataService:
    """EC2's, version 2, with the answers of a test. It forgets its tokens when it is told to."""

    def __init__(self) -> None:
        self.user_data: bytes | None = b"#cloud-config\npackage_update: false\n"
        self.status = 200
        self.tokens: set[str] = set()
        self.asked = 0
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/i-1/latest/api/token"
                assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
                service.tokens.add("secret")
                self.answer(200, b"secret")

            def do_GET(self) -> None:
                service.asked += 1
                assert self.path == "/i-1/latest/user-data"
                if self.headers["X-aws-ec2-metadata-token"] not in service.tokens:
                    self.answer(401, b"")
                elif service.user_data is None:
                    self.answer(404, b"<html>not found</html>")
                else:
                    self.answer(service.status, service.user_data)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/i-1"


@pytest.fixture
def service() -> Iterator[MetadataService]:
    found = MetadataService()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def assigned(path: str, text: str) -> bytes:
    return own_config(ImageFile(path, text, SECRET))


def test_the_enrolment_is_read_from_the_user_data_of_the_moment(service: MetadataService, tmp_path: Path) -> None:
    place = tmp_path / "enrolment.json"
    metadata = Metadata(service.url, str(place))
    assert not metadata.fetch(), "those of the first boot"
    service.user_data = None
    assert not metadata.fetch()
    service.tokens.clear()
    with pytest.raises(EnrolmentError):
        metadata.fetch()  # its token has ended
    service.user_data = assigned("/etc/bentpipe/enrolment.json", '{"token": "one"}')
    assert metadata.fetch()
    assert place.read_text() == '{"token": "one"}'
    assert place.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "user_data",
    [
        b"#cloud-config\n{",
        b"#cloud-config\n{}",
        b'#cloud-config\n{"write_files": 7}',
        b'#cloud-config\n{"write_files": [7, {"path": 3}, {"content": "x"}]}',
        b'#cloud-config\n{"write_files": [{"path": "/etc/bentpipe/enrolment.json"}]}',
        b'#cloud-config\n{"write_files": [{"path": "/etc/bentpipe/enrolment.json", "content": "not JSON"}]}',
        b'#cloud-config\n{"write_files": [{"path": "/etc/bentpipe/other.json", "content": "{}"}]}',
        b"#cloud-config\n{" + b'"a": {' * 50_000,
        b"\x1f\x8b\xff\xfe",
        b"",
    ],
)
def test_other_user_data_leave_no_file(service: MetadataService, tmp_path: Path, user_data: bytes) -> None:
    service.user_data = user_data
    place = tmp_path / "enrolment.json"
    with contextlib.suppress(EnrolmentError):
        assert not Metadata(service.url, str(place)).fetch()
    assert not place.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[", "nonsense", ""])
def test_a_metadata_service_that_is_not_there(tmp_path: Path, url: str) -> None:
    with pytest.raises(EnrolmentError):
        Metadata(url, str(tmp_path / "enrolment.json")).fetch()


async def test_a_machine_that_is_assigned_while_it_waits_enrols(
    bed: EnrolmentBed, service: MetadataService, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, await bed.launch())
    text = machine.enrolment.read_text()
    machine.enrolment.unlink()
    with machine.running("--metadata", service.url) as process:
        await until(lambda: service.asked > 1)
        assert not machine.tls.joinpath("next-key.pem").exists(), "it makes no key before it is a satellite's"
        process.send_signal(signal.SIGSTOP)  # it hibernates
        service.tokens.clear()
        service.user_data = assigned("/etc/bentpipe/enrolment.json", text)
        process.send_signal(signal.SIGCONT)
        await until(machine.identity.exists)
    assert bed.ca.enrolments.results == {("enrol", "ok"): 1}
