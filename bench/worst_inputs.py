"""What the worst inputs that a peer can send cost a turn, in milliseconds of CPU, beside an ordinary client's.

    PYTHONPATH=build/bench python -P -m bench.worst_inputs [tls] [http2]

The inputs are those that the tests look for (tests/proto/test_worst_inputs.py, tests/beds/peers/raw_tls.py). A step is
the work between two looks at other connections: one call of TLS, or one piece of HTTP/2. Each figure is the cost of the most
expensive step, the lowest of ROUNDS runs. This is not a question of `bench.run`, since no other peer is compared.
"""

import argparse
import contextlib
import importlib
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trustme

from bentpipe.native.tls import TlsConnection, TlsError, TlsServerContext, WantRead

TESTS = Path(__file__).resolve().parents[1] / "tests"
ROUNDS = 5
FLOOD = 20_000
READ_BYTES = 16_384
QUIET_S = 0.3
FULL_RECORDS = 64


class Microseconds:
    """CPU time, instead of the count of lines that the tests use."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens meanwhile."""
        began_ns = time.thread_time_ns()
        try:
            yield
        finally:
            self.count += (time.thread_time_ns() - began_ns) // 1000


def pair() -> tuple[socket.socket, socket.socket]:
    """A peer's end, and ours, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    far.setblocking(False)
    return near, far


def costliest_read(
    server: TlsServerContext, trust: ssl.SSLContext, build: Callable[[object], bytes]
) -> tuple[float, str]:
    """Let a peer say what `build` makes of it. Returns the most expensive call's CPU milliseconds, and how it ended."""
    raw_tls = importlib.import_module("beds.peers.raw_tls")
    near, far = pair()
    tls = TlsConnection(server, far.fileno())
    made: list[object] = []
    thread = threading.Thread(target=lambda: made.append(raw_tls.RawTls(near, trust)))
    thread.start()
    while True:
        try:
            tls.do_handshake()
            break
        except WantRead:
            time.sleep(0.001)
    thread.join()
    said = build(made[0])

    def say() -> None:
        with contextlib.suppress(OSError):
            near.sendall(said)

    thread = threading.Thread(target=say)
    thread.start()
    time.sleep(0.05)
    most_s, why, quiet_since_s = 0.0, "read", time.monotonic()
    while why == "read" and time.monotonic() < quiet_since_s + QUIET_S:
        began_s = time.thread_time()
        try:
            tls.read(READ_BYTES)
            quiet_since_s = time.monotonic()
        except WantRead:
            time.sleep(0.001)
        except TlsError as exc:
            why = str(exc).partition(":")[0]
        most_s = max(most_s, time.thread_time() - began_s)
    tls.close()
    far.close()
    thread.join()
    near.close()
    return most_s * 1000, why


def show_tls() -> None:
    """Print a row for each kind of record."""
    raw_tls = importlib.import_module("beds.peers.raw_tls")
    kinds: dict[str, tuple[Callable[..., bytes], int]] = {
        "record of 16 KiB": (lambda raw: raw.record(bytes(READ_BYTES)), FULL_RECORDS),
        "record of a byte": (lambda raw: raw.record(b"x"), FLOOD),
        "KeyUpdate": (lambda raw: raw.key_update(), FLOOD),
        "KeyUpdate that asks for ours": (lambda raw: raw.key_update(asks=True), FLOOD),
        "warning": (lambda raw: raw.alert(raw_tls.USER_CANCELED), FLOOD),
        "empty record, padded to 1 KiB": (lambda raw: raw.record(b"", padding=1000), FLOOD),
    }
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "certificate", Path(folder) / "key"
        files[0].write_bytes(issued.cert_chain_pems[0].bytes())
        files[1].write_bytes(issued.private_key_pem.bytes())
        server = TlsServerContext(*files)
        print("| TLS records | most expensive call, ms of CPU | ends |\n| --- | ---: | --- |")
        for name, (make, count) in kinds.items():

            def build(raw: object, make: Callable[..., bytes] = make, count: int = count) -> bytes:
                return b"".join(make(raw) for _ in range(count))

            cost_ms, why = min(costliest_read(server, trust, build) for _ in range(ROUNDS))
            print(f"| {count} × {name} | {cost_ms:.2f} | {why} |", flush=True)


def show_http2() -> None:
    """Print each reader's most expensive kinds of frames and header blocks."""
    wire = importlib.import_module("test_worst_inputs")
    vars(wire)["make_meter"] = Microseconds
    ordinary = wire.call("sat", "bp_test")
    print("| reader | input | most expensive step, ms of CPU |\n| --- | --- | ---: |")
    for reader, read in wire.READERS.items():
        rows = [(min(read(ordinary) for _ in range(ROUNDS)), "an ordinary client's")]
        for kind in sorted(wire.KINDS):
            for size, count in ((1, 300), (90, 20), (30_000, 2)):
                said = wire.build([(kind, size, count)])
                rows.append((min(read(said) for _ in range(ROUNDS)), f"{count} × {kind}, {size}"))
        for cost_us, name in [rows[0], *sorted(rows[1:], reverse=True)[:3]]:
            print(f"| {reader} | {name} | {cost_us / 1000:.2f} |", flush=True)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description="CPU of the worst inputs")
    parser.add_argument("parts", nargs="*", help="tls, http2; both if none is named")
    wanted = parser.parse_args().parts or ["tls", "http2"]
    sys.path[:0] = [str(TESTS), str(TESTS / "proto")]
    if "tls" in wanted:
        show_tls()
    if "http2" in wanted:
        show_http2()


if __name__ == "__main__":
    main()
