"""Where a new connection's time goes in our own Python: handshake, greeting, admission, hand-off, each alone, by pyperf.

`python -m bench.micro [pyperf's options]`. `bench.compare` runs it on two revisions. Uses only what every revision has.
"""

import functools
import hashlib
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hpack
import pyperf
import trustme

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.engine import Engine, EngineOptions, Leg
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsServerContext, WantRead
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.frames import ACK, END_HEADERS, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.request import parse_request

TOKENS = 100
"""As many as a fleet may have. Admission compares with each of them."""
TOKEN = "bp_" + "5" * 64
OPENING = PREFACE + frame(FrameType.SETTINGS, 0, 0, b"")
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0, b"")


def _request() -> bytes:
    headers = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/moby.buildkit.v1.Control/Solve"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.75.0"),
        ("satellite_name", "bench"),
        ("satellite_org", "acme"),
        ("satellite_token", TOKEN),
    ]
    return frame(FrameType.HEADERS, END_HEADERS, 1, hpack.Encoder().encode(headers))


def time_handshake(server: TlsServerContext, client: TlsClientContext, loops: int) -> float:
    """Both ends of a TLS handshake on a pair of sockets, in one thread. The server's share is a little over half."""
    spent = 0.0
    for _ in range(loops):
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            start = time.perf_counter()
            ends = [
                TlsConnection(client, left.fileno(), server_name="localhost"),
                TlsConnection(server, right.fileno()),
            ]
            waiting = list(ends)
            while waiting:
                waiting = [end for end in waiting if not _shaken(end)]
            spent += time.perf_counter() - start
            for end in ends:
                end.close()
    return spent


def _shaken(connection: TlsConnection) -> bool:
    try:
        connection.do_handshake()
    except WantRead:
        return False
    return True


def greet(flights: tuple[bytes, ...]) -> None:
    """Read a client's flights to its request, and what the request says."""
    greeting = Greeting()
    for flight in flights:
        for event in greeting.receive_data(flight, 0.0):
            if isinstance(event, RequestHeaders):
                parse_request(event.headers)
        greeting.end_of_first_flight()
        greeting.data_to_send()


def admit(admission: Admission, key: SatelliteKey) -> None:
    """From token to permission."""
    admission.authorize(admission.authenticate(TOKEN), key)


def time_hand_off(engine: Engine, loops: int) -> float:
    """Give two sockets to the engine and take the end back when the client has closed."""
    spent = 0.0
    for _ in range(loops):
        client, ours = socket.socketpair()
        theirs, satellite = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        start = time.perf_counter()
        engine.splice(Leg(ours.detach(), None), Leg(theirs.detach(), None))
        client.close()
        satellite.close()
        while not engine.take_ended():
            time.sleep(0)
        spent += time.perf_counter() - start
    return spent


def main() -> None:
    """Run under pyperf."""
    runner = pyperf.Runner()
    runner.metadata["description"] = "bentpipe: the parts of a new connection"
    request = _request()
    tokens = [
        TokenSection(name=f"t{n}", hash=f"sha256:{hashlib.sha256(b'%d' % n).hexdigest()}", grants=("acme/*",))
        for n in range(TOKENS - 1)
    ]
    tokens.append(
        TokenSection(name="own", hash=f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}", grants=("acme/*",))
    )
    with tempfile.TemporaryDirectory() as folder:
        timed: dict[str, Callable[[int], float]] = {}
        authority = trustme.CA()
        identity = authority.issue_cert("localhost")
        paths = {name: Path(folder) / name for name in ("ca", "certificate", "key")}
        authority.cert_pem.write_to_path(str(paths["ca"]))
        identity.cert_chain_pems[0].write_to_path(str(paths["certificate"]))
        identity.private_key_pem.write_to_path(str(paths["key"]))
        server = TlsServerContext(paths["certificate"], paths["key"])
        client = TlsClientContext(ca=paths["ca"])
        timed["handshake, both ends"] = functools.partial(time_handshake, server, client)
        timed["hand-off and end"] = functools.partial(time_hand_off, Engine(EngineOptions(threads=1)))
        for name, function in timed.items():
            runner.bench_time_func(name, function)
        runner.bench_func("greeting, request in the first flight", greet, (OPENING + request,))
        runner.bench_func("greeting, as grpc-go", greet, (OPENING, SETTINGS_ACK + request))
        runner.bench_func(f"admission, {TOKENS} tokens", admit, Admission(tokens), SatelliteKey("acme", "bench"))


if __name__ == "__main__":
    main()
