"""curl, h2load and a scripted client, which send HEADERS without waiting for SETTINGS, to servers strict about ACKs.

The ACK of the SETTINGS that we spoke must never reach a satellite, which did not send them: nghttpd and Go's net/http end
the connection over it, as the first test shows of them.
"""

import contextlib
import hashlib
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack
import pytest

from beds.hosts.in_process import PREFACE, frames_of
from beds.http2 import EMPTY_SETTINGS
from beds.peers.builds import Missing, program
from beds.peers.clients import SERVICE, CallError, Client
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, SERVER_KINDS, TABLE_SIZES, or_skip, satellite_command
from bentpipe.daemon.testbed.edge_host import ORG, EdgeHost

SETTINGS_ACK = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
STRICT = ["nghttpd", "strict"]
NGHTTPD = ("nghttpd", "--no-tls", "--echo-upload", "-a", "127.0.0.1", "{port}")
DEADLINE_S = 30.0

ECHO = f"/{SERVICE}/Echo"
GRPC_MESSAGE = b"\0\0\0\0\5hello"
GRPC_FIELDS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
grpc_servers = pytest.mark.parametrize("kind", SERVER_KINDS)


def needed(name: str) -> str:
    try:
        return program(name)
    except Missing as exc:
        pytest.skip(str(exc))


def strict_command(kind: str) -> tuple[str, ...]:
    if kind == "nghttpd":
        needed("nghttpd")
        return NGHTTPD
    return grpc_command(kind)


def grpc_command(kind: str) -> tuple[str, ...]:
    command = satellite_command(kind)
    if command is None:
        pytest.skip("the Go peer cannot be built here")
    return command


def fields(edge: EdgeHost, satellite: str) -> list[tuple[str, str]]:
    return [("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", edge.token)]


def flags(edge: EdgeHost, satellite: str) -> list[str]:
    return [part for name, value in fields(edge, satellite) for part in ("-H", f"{name}: {value}")]


def request_block(path: str, extra: list[tuple[str, str]]) -> bytes:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "edge")]
    return hpack.Encoder().encode([*pseudo, *extra])


def frame(kind: int, flags_: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags_)) + stream.to_bytes(4) + payload


class Scripted:
    """A client that says what the test says, frame by frame."""

    def __init__(self, port: int, edge: EdgeHost | None = None) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        if edge is not None:
            context = ssl.create_default_context(cadata=edge.ca_pem.decode())
            context.set_alpn_protocols(["h2"])
            self._sock = context.wrap_socket(self._sock, server_hostname="localhost")
        self._received = b""

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_error: object) -> None:
        self._sock.close()

    def send(self, *parts: bytes) -> None:
        self._sock.sendall(b"".join(parts))

    def until(self, kind: int, count: int = 1) -> list[tuple[int, int, int, bytes]]:
        """Read on to the `count`th frame of a kind since the start. Returns all frames; fails if the stream ends."""
        while sum(f[0] == kind for f in self.frames()) < count:
            data = self._sock.recv(1 << 16)
            assert data, f"ended after {self.frames()}"
            self._received += data
        return self.frames()

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Every complete frame so far."""
        found = frames_of(self._received)
        used = sum(9 + len(f[3]) for f in found)
        return found if used <= len(self._received) else found[:-1]


@contextlib.contextmanager
def serving(command: tuple[str, ...]) -> Iterator[int]:
    """Run a server without bentpipe, for comparison. Yields its port, on which it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [part.replace("{port}", str(port)) for part in command]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert time.monotonic() < deadline, "it does not listen"
                time.sleep(0.01)
            yield port
        finally:
            server.kill()


@pytest.mark.parametrize("kind", STRICT)
def test_these_servers_do_punish_an_ack_that_they_did_not_ask_for(kind: str) -> None:
    with serving(strict_command(kind)) as port, Scripted(port) as client:
        client.send(PREFACE, EMPTY_SETTINGS, SETTINGS_ACK, SETTINGS_ACK)
        client.until(GOAWAY)


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("ack", ["before", "with", "after-answer"])
def test_the_ack_is_taken_out_wherever_it_comes(
    edge: EdgeHost, asleep: Callable[[str], str], kind: str, held: bool, ack: str
) -> None:
    strict_command(kind)
    block = request_block("/echo", fields(edge, asleep(kind) if held else kind))
    first = frame(HEADERS, 4, 1, block) + frame(DATA, 1, 1, b"first")
    second = frame(HEADERS, 4, 3, request_block("/echo", [])) + frame(DATA, 1, 3, b"second")
    with Scripted(edge.port, edge) as client:
        client.send(PREFACE, EMPTY_SETTINGS)
        kind_, flags_, stream, entries = client.until(SETTINGS)[0]
        assert (kind_, flags_, stream) == (SETTINGS, 0, 0)
        said = {int.from_bytes(entries[at : at + 2]) for at in range(0, len(entries), 6)}
        assert said <= {MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE}, "ours"
        if ack == "before":
            client.send(SETTINGS_ACK, first)
        elif ack == "with":
            client.send(first, SETTINGS_ACK)
        else:
            client.send(first)
            client.until(DATA)
            client.send(SETTINGS_ACK)
        # The satellite's own SETTINGS, and the ACK that they are owed.
        client.until(SETTINGS, 2)
        client.send(SETTINGS_ACK, second)
        while True:
            bodies = {s: b"".join(p for k, _, t, p in client.frames() if (k, t) == (DATA, s)) for s in (1, 3)}
            if bodies == {1: b"first", 3: b"second"}:
                break
            client.until(DATA, sum(k == DATA for k, *_ in client.frames()) + 1)
        assert GOAWAY not in {kind for kind, *_ in client.frames()}


def curl(edge: EdgeHost, satellite: str, folder: Path, body: bytes, *options: str) -> None:
    """POST a body that is echoed; the answer must be that body."""
    (folder / "ca.pem").write_bytes(edge.ca_pem)
    (folder / "body").write_bytes(body)
    command = [needed("curl"), "-sS", "--http2", "--cacert", str(folder / "ca.pem")]
    command += ["--data-binary", f"@{folder / 'body'}"]
    command += [*flags(edge, satellite), *options, "-H", "expect:", "-o", str(folder / "echo")]
    command += ["-w", "%{http_version} %{http_code}", f"https://localhost:{edge.port}/echo"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=True)
    assert done.stdout == b"2 200", done.stderr
    assert hashlib.sha256((folder / "echo").read_bytes()).digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("size_bytes", [1 << 20, pytest.param(100_000_001, marks=pytest.mark.slow)])
def test_curl(
    edge: EdgeHost, asleep: Callable[[str], str], tmp_path: Path, kind: str, held: bool, size_bytes: int
) -> None:
    strict_command(kind)
    curl(edge, asleep(kind) if held else kind, tmp_path, (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes])


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize("held", [False, True])
def test_curl_with_a_header_block_over_one_frame(
    edge: EdgeHost, asleep: Callable[[str], str], tmp_path: Path, kind: str, held: bool
) -> None:
    strict_command(kind)
    curl(edge, asleep(kind) if held else kind, tmp_path, b"body", "-H", f"x-large: {'Zq' * 10_000}")


@grpc_servers
@pytest.mark.parametrize("held", [False, True])
def test_curl_speaks_grpc(edge: EdgeHost, asleep: Callable[[str], str], tmp_path: Path, kind: str, held: bool) -> None:
    grpc_command(kind)
    (tmp_path / "ca.pem").write_bytes(edge.ca_pem)
    command = [needed("curl"), "-sS", "--http2", "--cacert", str(tmp_path / "ca.pem"), "--data-binary", "@-"]
    command += GRPC_FIELDS
    command += [*flags(edge, asleep(kind) if held else kind), f"https://localhost:{edge.port}{ECHO}"]
    done = subprocess.run(command, input=GRPC_MESSAGE, capture_output=True, timeout=DEADLINE_S, check=True)
    assert done.stdout == GRPC_MESSAGE


def h2load(edge: EdgeHost, satellite: str, path: str, body: Path, requests: int, *options: str) -> None:
    """POST a body that is echoed, ten at once on each of ten connections; every answer must be 200 and as long as it."""
    command = [needed("h2load"), "-n", str(requests), "-c", "10", "-m", "10", "-d", str(body), *options]
    command += [*flags(edge, satellite), f"https://localhost:{edge.port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    echoed = re.search(r"\((\d+)\) data", done.stdout)
    assert counts is not None, done.stdout
    assert echoed is not None, done.stdout
    assert counts.groups() == (str(requests), "0", "0"), done.stdout
    assert int(echoed[1]) == requests * body.stat().st_size


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize("held", [False, True])
def test_h2load(edge: EdgeHost, asleep: Callable[[str], str], tmp_path: Path, kind: str, held: bool) -> None:
    strict_command(kind)
    (tmp_path / "body").write_bytes(b"x" * 1000)
    h2load(edge, asleep(kind) if held else kind, "/echo", tmp_path / "body", 2000)


@grpc_servers
@pytest.mark.parametrize("held", [False, True])
def test_h2load_speaks_grpc(
    edge: EdgeHost, asleep: Callable[[str], str], tmp_path: Path, kind: str, held: bool
) -> None:
    grpc_command(kind)
    (tmp_path / "body").write_bytes(GRPC_MESSAGE)
    h2load(edge, asleep(kind) if held else kind, ECHO, tmp_path / "body", 500, *GRPC_FIELDS)


@pytest.mark.parametrize("own_bytes", [0, 65_536])
@pytest.mark.parametrize("satellite_bytes", TABLE_SIZES)
def test_header_tables_of_other_sizes(edge: EdgeHost, tmp_path: Path, own_bytes: int, satellite_bytes: int) -> None:
    """Each end's SETTINGS_HEADER_TABLE_SIZE reaches the other, which changes its table in a later block (RFC 7541 §4.2)."""
    needed("nghttpd")
    (tmp_path / "body").write_bytes(b"x")
    sizes = (f"--header-table-size={own_bytes}", "--encoder-header-table-size=65536")
    h2load(edge, f"nghttpd-{satellite_bytes}", "/echo", tmp_path / "body", 200, *sizes)


@pytest.mark.parametrize("client_kind", CLIENT_KINDS)
@pytest.mark.parametrize("held", [False, True])
def test_grpc_client_of_a_server_that_speaks_none(
    edge: EdgeHost, connect: Callable[..., Client], asleep: Callable[[str], str], client_kind: str, held: bool
) -> None:
    """nghttpd echoes without a grpc-status: a client says of that what it says of nghttpd itself."""
    with (
        serving(strict_command("nghttpd")) as port,
        contextlib.closing(or_skip(CLIENTS[client_kind], port, None, ())) as client,
    ):
        direct = failure(client)
    assert failure(connect(client_kind, asleep("nghttpd") if held else "nghttpd")) == direct


def failure(client: Client) -> tuple[int, str]:
    with pytest.raises(CallError) as error:
        client.unary("Echo", b"hello")
    # grpc-java's words have the answer's date in them, which is another at every answer.
    return error.value.code, re.sub(r"date=[^=]* GMT", "date=…", error.value.details)
