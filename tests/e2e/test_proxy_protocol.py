"""A listener behind proxies: whom it believes, what it makes of a header in pieces, and whose address counts then."""

import contextlib
import functools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.behind_proxies import (
    DEADLINE_S,
    GREETING_DEADLINE_S,
    ORDINARY,
    PLAIN,
    PROXY_ADDRESS,
    TLS,
    Behind,
    edge_behind_proxies,
    wait_until,
)
from beds.hosts.proxy_headers import LOCAL, MALFORMED, PROXY, TCP4, TCP6, UNSPEC, VALID, address4, address6, v2
from beds.peers.clients import CallError
from bentpipe.daemon.connections.quotas import GRACE_S
from bentpipe.daemon.records.lines import LINE

STRANGER = "127.0.0.9"
MAX_PER_ADDRESS = 4
UNAUTHENTICATED = 16
SETTLE_S = 0.3
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
WHO = "192.0.2.7:40000"
HEADER = v2(PROXY, TCP4, address4())


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with edge_behind_proxies(tmp_path_factory.mktemp("tls"), MAX_PER_ADDRESS) as edge:
        yield edge


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Behind]:
    """One that nobody is too late for."""
    with edge_behind_proxies(tmp_path, MAX_PER_ADDRESS, greeting_deadline_s=60) as edge:
        yield edge


def expected(behind: Behind, source: tuple[str, int] | None) -> None:
    """The last spliced connection was that client's; None: the proxy's own."""
    peer = str(behind.logged("spliced")[-1]["peer"])
    assert peer == f"{source[0]}:{source[1]}" if source else peer.startswith(f"{PROXY_ADDRESS}:")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", VALID)
def test_every_valid_header_and_a_real_client_behind_it(behind: Behind, name: str, tls: bool) -> None:
    header, source = VALID[name]
    with behind.wire(TLS if tls else PLAIN, header) as wire:
        assert behind.call(wire, tls=tls) == b"through"
    expected(behind, source)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ["v1 TCP6", "v2 CRC32C", "v2 LOCAL with addresses"])
def test_a_header_that_comes_byte_by_byte(behind: Behind, name: str, tls: bool) -> None:
    header, source = VALID[name]
    pieces = [header[at : at + 1] for at in range(len(header))]
    with behind.wire(TLS if tls else PLAIN, *pieces) as wire:
        assert behind.call(wire, tls=tls) == b"through"
    expected(behind, source)


def test_the_first_request_may_come_with_the_header(behind: Behind) -> None:
    """In one segment: not a byte of it is lost with the header, and none of the header stays."""
    for header in (HEADER, VALID["v1 TCP6"][0], VALID["v2 with a client's certificate"][0]):
        answer = behind.raw(PLAIN, header + HELLO + b"\0\0\4\1\5\0\0\0\1\x83\x86\x84\x41", end=True)
        # An HPACK error: our SETTINGS, then GOAWAY with COMPRESSION_ERROR. Anything lost would be PROTOCOL_ERROR.
        assert b"\0\0\0\x09" in answer[-128:], answer


@pytest.mark.parametrize("port", [PLAIN, TLS])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_and_missing_headers_are_refused_and_counted(behind: Behind, name: str, port: int) -> None:
    data, rule = MALFORMED[name]
    kind = "no-proxy-header" if rule.value == "absent" else "bad-proxy-header"
    before = behind.outcomes().get(kind, 0)
    assert behind.raw(port, data) == b""
    assert behind.outcomes()[kind] == before + 1
    told = [record for record in behind.logged(LINE) if record["end"] == kind]
    assert {str(record["peer"]).partition(":")[0] for record in told} == {PROXY_ADDRESS}
    assert all(record["error"] for record in told)


@pytest.mark.parametrize("port", [PLAIN, TLS])
@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 192.0.2.7 ", HEADER[:20]])
def test_a_proxy_that_only_knocks_is_a_probe(behind: Behind, port: int, sent: bytes) -> None:
    before = behind.outcomes().get("probe", 0)
    assert behind.raw(port, sent, end=True) == b""
    assert behind.outcomes()["probe"] == before + 1


@pytest.mark.parametrize("port", [PLAIN, TLS])
def test_a_header_that_never_ends_is_late(behind: Behind, port: int) -> None:
    before, begun = behind.outcomes().get("deadline", 0), time.monotonic()
    assert behind.raw(port, HEADER[:-1]) == b""
    assert time.monotonic() - begun > GREETING_DEADLINE_S - 0.1
    assert behind.outcomes()["deadline"] == before + 1


@pytest.mark.parametrize("port", [ORDINARY, PLAIN, TLS])
@pytest.mark.parametrize("header", [HEADER, b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"])
def test_nobody_else_is_believed(behind: Behind, port: int, header: bytes) -> None:
    """Nor on a port without `proxy_protocol`, though the proxy's own address would be right."""
    source = PROXY_ADDRESS if port == ORDINARY else STRANGER
    before = behind.outcomes().get("untrusted-proxy-header", 0)
    behind.raw(port, header + HELLO, source=source)
    assert behind.outcomes()["untrusted-proxy-header"] == before + 1
    told = [record for record in behind.logged(LINE) if record["end"] == "untrusted-proxy-header"]
    assert str(told[-1]["peer"]).startswith(f"{source}:")
    assert not any(record.get("peer") == WHO for record in told)


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_comes_past_the_proxy_is_an_ordinary_client(behind: Behind, tls: bool) -> None:
    with behind.wire(TLS if tls else PLAIN, source=STRANGER) as wire:
        assert behind.call(wire, tls=tls) == b"through"
    assert str(behind.logged("spliced")[-1]["peer"]).startswith(f"{STRANGER}:")


def test_a_second_header_is_not_believed(behind: Behind) -> None:
    """Only one is taken: a client that sends one itself, behind its proxy's, is not believed."""
    before = behind.outcomes().get("untrusted-proxy-header", 0)
    behind.raw(PLAIN, HEADER + v2(PROXY, TCP4, address4("198.51.100.1")))
    assert behind.outcomes()["untrusted-proxy-header"] == before + 1
    told = [record for record in behind.logged(LINE) if record["end"] == "untrusted-proxy-header"]
    assert told[-1]["peer"] == WHO


@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_names_the_client(behind: Behind, tls: bool) -> None:
    with behind.wire(TLS if tls else PLAIN, HEADER) as wire, pytest.raises(CallError) as error:
        behind.call(wire, tls=tls, token="bp_wrong")
    assert error.value.code == UNAUTHENTICATED
    told = [record for record in behind.logged(LINE) if record["end"] == "refused"]
    assert told[-1]["peer"] == WHO


def test_limits_are_each_clients_and_not_the_proxys(patient: Behind) -> None:
    """More clients than one address may have come by the proxy; of one that has too many the oldest goes, and no other's."""

    def connect(source: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", patient.edge.ports[PLAIN]), DEADLINE_S, (PROXY_ADDRESS, 0))
        sock.sendall(source + HELLO)
        return sock

    def is_open(sock: socket.socket) -> bool:
        """Whether our SETTINGS come."""
        with contextlib.suppress(ConnectionError):
            return sock.recv(9)[3:] == HELLO[-9:][3:]  # they are of any length
        return False

    def is_ended(sock: socket.socket) -> bool:
        """Whether it was closed behind our SETTINGS, and perhaps GOAWAY."""
        sock.settimeout(0)
        try:
            while sock.recv(4096):
                pass
        except BlockingIOError:
            return False
        return True

    before = patient.outcomes().get("over-limit", 0)
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(connect(v2(PROXY, TCP4, address4(f"198.51.100.{number}"))))
            for number in range(3 * MAX_PER_ADDRESS)
        ]
        assert all(map(is_open, others))
        # One client, whichever way its address is written; the proxy's own connections are its own address's.
        ways = (v2(PROXY, TCP6, address6("::ffff:203.0.113.5")), v2(PROXY, TCP4, address4("203.0.113.5")))
        local = v2(LOCAL, UNSPEC, b"")
        for of_one in ([ways[number % 2] for number in range(MAX_PER_ADDRESS)], [local] * MAX_PER_ADDRESS):
            opened = [stack.enter_context(connect(source)) for source in of_one]
            assert all(map(is_open, opened))
            time.sleep(1.1 * GRACE_S)
            assert not any(map(is_ended, opened))
            assert is_open(stack.enter_context(connect(of_one[1]))), "every newcomer may show a token"
            # Which of them goes is a matter of whose header was read first.
            wait_until(functools.partial(lambda among: any(map(is_ended, among)), opened))
            time.sleep(SETTLE_S)
            assert sum(map(is_ended, opened)) == 1
        assert is_open(stack.enter_context(connect(v2(PROXY, TCP4, address4("203.0.113.6")))))
        assert not any(map(is_ended, others))
    assert patient.outcomes()["over-limit"] == before + 2
    # All places were given back.
    with contextlib.ExitStack() as stack:
        for way in ways:
            wait_until(functools.partial(lambda source: is_open(stack.enter_context(connect(source))), way))
