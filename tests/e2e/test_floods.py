"""Peers that make the daemon work for nothing, from outside: each is stopped with its reason, counted, and no turn is long.

The daemon has its own thread here, so that its turns are its own; CPU time of a turn is what is judged, since others run
on this machine too. The records are tests/beds/peers/raw_tls.py's; mixtures are looked for in
tests/native/test_tls_floods.py and tests/proto/test_worst_inputs.py.
"""

import contextlib
import gc
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.form import ADMISSION, serve_file
from beds.hosts.in_process import PLAIN, PREFACE, TLS, TOKEN, frames_of, goaway_of, write_config
from beds.http2 import EMPTY_SETTINGS
from beds.peers.crowd import DATA, END_HEADERS, HEADERS, SETTINGS, Crowd, call, ended, frame, headers
from beds.peers.raw_tls import CLIENT_HELLO, HANDSHAKE, USER_CANCELED, RawTls, message
from beds.programs import program
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.garbage import set_up_garbage
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.service.turns import LONG_TURN_S
from bentpipe.native.engine import EndReason
from bentpipe.proto.errors import ErrorCode

PATIENCE_S = 60.0
START = PREFACE + EMPTY_SETTINGS
REFUSED = 400
NEVER_READY = """
[[satellite]]
org = "acme"
name = "{name}"
hold_limit = "{hold_limit}"
[satellite.process]
command = ["sleep", "1000", "{{port}}"]
stop_grace = "1s"
"""
FLOODING = """
[[satellite]]
org = "acme"
name = "{when}"
[satellite.process]
command = [{command}, "{{port}}", "{cert}", "{key}", "{when}"]
stop_grace = "1s"
[satellite.tls]
ca = "{ca}"
server_name = "localhost"
"""
CONTROL = "TLS_CONTROL_RECORDS"


class Running:
    """A daemon in a thread, and a stranger's means to reach it."""

    def __init__(self, daemon: Daemon, token: trio.lowlevel.TrioToken, trust: ssl.SSLContext) -> None:
        self.daemon = daemon
        self.token = token
        self._trust = trust

    def connect(self) -> RawTls:
        """A TLS connection of which nothing but the handshake was said."""
        sock = socket.create_connection(self.daemon.addresses[TLS], timeout=PATIENCE_S)
        return RawTls(sock, self._trust)

    def wait(self, what: Callable[[], bool]) -> None:
        """Wait until it is so; only counters may be looked at."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, (self.daemon.counters, self.daemon.handoff.ended)
            time.sleep(0.01)

    def waiting(self, name: str) -> int:
        return self.daemon.fleet.get(SatelliteKey("acme", name)).waiting


@pytest.fixture
def running(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> Iterator[Running]:
    files = {name: tmp_path / f"satellite-{name}" for name in ("cert", "key", "ca")}
    issued = authority.issue_cert("localhost")
    files["cert"].write_bytes(issued.cert_chain_pems[0].bytes())
    files["key"].write_bytes(issued.private_key_pem.bytes())
    files["ca"].write_bytes(authority.cert_pem.bytes())
    sections = "".join(
        [
            NEVER_READY.format(name="never", hold_limit="10m"),
            NEVER_READY.format(name="brief", hold_limit="2s"),
            *(
                FLOODING.format(when=when, command=json.dumps(program("peers.flooding_satellite"))[1:-1], **files)
                for when in ("at-once", "answering")
            ),
        ]
    )
    path = write_config(tmp_path, authority, client_authority, limits='greeting_deadline = "10s"', sections=sections)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    trust.minimum_version = ssl.TLSVersion.TLSv1_3
    started: list[tuple[Daemon, trio.lowlevel.TrioToken]] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            daemon = await nursery.start(serve_file, path)
            started.append((daemon, trio.lowlevel.current_trio_token()))

    usual = gc.get_threshold()
    set_up_garbage()  # as `bentpipe serve` does, or a collection of this process's own would be in a turn
    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    while not started and thread.is_alive():
        time.sleep(0.01)
    [(daemon, token)] = started
    yield Running(daemon, token, trust)

    def end() -> None:
        daemon.handoff.abort_all()
        daemon.drain.set()

    token.run_sync_soon(end)
    thread.join()
    gc.set_threshold(*usual)
    gc.unfreeze()


@contextlib.contextmanager
def short_turns(running: Running) -> Iterator[None]:
    """No turn of any thread is long meanwhile: of Trio's by CPU time, of the engine's by their own count."""
    yield
    assert running.daemon.turns.statistics().longest_cpu_s < LONG_TURN_S


def say(raw: RawTls, said: bytes) -> None:
    with contextlib.suppress(OSError):  # closed over it
        raw.sock.sendall(said)


Flood = Callable[[RawTls], bytes]
FLOODS: dict[str, Flood] = {
    "KeyUpdate": lambda raw: raw.key_update(),
    "KeyUpdate that asks": lambda raw: raw.key_update(asks=True),
}
STOPPED_BY_OPENSSL: dict[str, Flood] = {
    "warning": lambda raw: raw.alert(USER_CANCELED),
    "empty": lambda raw: raw.record(b""),
    "padded": lambda raw: raw.record(b"", padding=8000),
}
"""By an alert of its own, behind which nothing can be said."""


@pytest.mark.parametrize("flood", [*FLOODS.values(), *STOPPED_BY_OPENSSL.values()], ids=[*FLOODS, *STOPPED_BY_OPENSSL])
@pytest.mark.parametrize("said", [b"", START], ids=["without a word", "greeting"])
def test_a_stranger_floods(running: Running, flood: Flood, said: bytes) -> None:
    """Before any token; 40 s of the whole control plane it was, for as many key updates as fit into a second of sending."""
    raw = running.connect()
    if said:
        raw.sock.sendall(raw.record(said))
    with short_turns(running):
        say(raw, b"".join(flood(raw) for _ in range(5000)))
        answer = raw.read_all()
        running.wait(lambda: running.daemon.counters.ended[Outcome.MALFORMED] == 1)
    assert running.daemon.counters.malformed == {CONTROL: 1}
    if flood in FLOODS.values():
        assert goaway_of(answer) == (ErrorCode.ENHANCE_YOUR_CALM, b"over the limit " + CONTROL.encode())
    raw.sock.close()


def test_a_tenant_floods_while_it_is_held(running: Running) -> None:
    raw = running.connect()
    raw.sock.sendall(raw.record(START + frame(HEADERS, END_HEADERS, 1, headers("never", TOKEN))))
    running.wait(lambda: running.waiting("never") == 1)
    with short_turns(running):
        say(raw, b"".join(raw.key_update() for _ in range(5000)))
        assert goaway_of(raw.read_all())[1] == b"over the limit " + CONTROL.encode()
    running.wait(lambda: running.waiting("never") == 0)
    assert running.daemon.counters.malformed == {CONTROL: 1}
    raw.sock.close()


def test_a_tenant_floods_through_a_splice(running: Running) -> None:
    raw = running.connect()
    raw.sock.sendall(raw.record(call("sat", TOKEN, b"hello")))
    said = b""
    while b"hello" not in said:
        data = raw.read()
        assert data
        said += data
    say(raw, b"".join(raw.key_update() for _ in range(5000)))
    running.wait(lambda: running.daemon.handoff.ended[EndReason.CLIENT_TLS_FLOOD] == 1)
    raw.sock.close()


def test_a_handshake_in_fragments(running: Running) -> None:
    hello = message(CLIENT_HELLO, b"\3\3" + bytes(60_000))
    said = b"".join(bytes((HANDSHAKE, 3, 1, 0, 1, byte)) for byte in hello)
    with short_turns(running), socket.create_connection(running.daemon.addresses[TLS], timeout=PATIENCE_S) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(said)
        running.wait(lambda: running.daemon.counters.ended[Outcome.TLS_FAILED] == 1)
    assert running.daemon.counters.malformed == {"TLS_HANDSHAKE_RECORDS": 1}


def test_records_of_a_byte(running: Running) -> None:
    """Legal, so the greeting is read and meets its own limit; each was a turn's worth of Python before."""
    raw = running.connect()
    said = raw.records(START + frame(0xFA, 0, 0, bytes(16_000)) * 5, 1)
    with short_turns(running):
        say(raw, said)
        assert goaway_of(raw.read_all())[1] == b"over the limit GREETING_BYTES"
    raw.sock.close()


def test_records_of_a_byte_behind_a_refusal(running: Running) -> None:
    """What is only drained is not decrypted."""
    raw = running.connect()
    said = raw.record(START + frame(DATA, 0, 1)) + raw.records(bytes(40_000), 1)
    with short_turns(running):
        say(raw, said)
        assert goaway_of(raw.read_all())[0] == ErrorCode.PROTOCOL_ERROR
    raw.sock.close()


@pytest.mark.parametrize("when", ["at-once", "answering"])
@pytest.mark.parametrize("waits", [False, True], ids=["speaks first", "waits for SETTINGS"])
def test_a_satellite_floods(running: Running, when: str, waits: bool) -> None:
    """While it is introduced to its client, relayed or spliced: its client loses it, and nobody else anything."""
    raw = running.connect()
    request = call(when, TOKEN, b"hello")
    with short_turns(running):
        if waits:
            raw.sock.sendall(raw.record(START))
            assert frames_of(raw.read())[0][0] == SETTINGS
            raw.sock.sendall(raw.record(request.removeprefix(START)))
        else:
            raw.sock.sendall(raw.record(request))
        said = raw.read_all()
    raw.sock.close()
    ends = running.daemon.handoff.ended
    outcomes = running.daemon.counters.ended
    running.wait(
        lambda: ends[EndReason.SATELLITE_TLS_FLOOD] + outcomes[Outcome.REFUSED] + outcomes[Outcome.BROKEN] >= 1
    )
    # A data plane that brings its client there itself finds the flood before the splice, and the client is offered instead.
    assert ends[EndReason.SATELLITE_TLS_FLOOD] == 1 or waits or ADMISSION == "snapshot"
    if waits and when == "at-once":  # it is refused in words, since it has heard nothing of this satellite
        assert HEADERS in {kind for kind, *_ in frames_of(said)}
        assert outcomes == {Outcome.REFUSED: 1}
    other = running.connect()
    other.sock.sendall(other.record(call("sat", TOKEN, b"beside")))
    heard = b""
    while b"beside" not in heard:
        data = other.read()
        assert data
        heard += data
    other.sock.close()


def test_a_crowd_is_refused_in_short_turns(running: Running) -> None:
    with short_turns(running), Crowd(running.daemon.addresses[PLAIN]) as crowd:
        crowd.join(REFUSED, call("brief", TOKEN))
        assert crowd.until(ended, PATIENCE_S) == REFUSED
    running.wait(lambda: sum(running.daemon.counters.ended.values()) == REFUSED)
    assert running.daemon.counters.ended == {Outcome.REFUSED: REFUSED}


def test_a_crowd_shakes_hands_in_short_turns(running: Running, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with short_turns(running), Crowd(running.daemon.addresses[PLAIN]) as crowd:
        crowd.join(200, call("nobody", TOKEN), address=running.daemon.addresses[TLS], tls=context)
        assert crowd.until(ended, PATIENCE_S) == 200
    running.wait(lambda: sum(running.daemon.counters.ended.values()) == 200)
    assert running.daemon.counters.ended == {Outcome.REFUSED: 200}
