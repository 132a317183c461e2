"""Who waits for a client's first byte: the kernel, for a second, unless the listener says otherwise."""

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.connections.listener import DEFER_ACCEPT_S, bind, listen_for

RESET = struct.pack("ii", 1, 0)
LONG_S = 30
"""For tests in which the second must not pass by itself, however slow the machine is."""


def deferred_s(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)


def section(**values: object) -> ListenerSection:
    return ListenerSection.model_validate({"address": "127.0.0.1:0", **values})


@pytest.fixture
def patient() -> Iterator[socket.socket]:
    """A listener that waits for LONG_S."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, LONG_S)
        [listener] = listen_for(ListenerSection.model_validate({"systemd": "clients"}), {"clients": [sock]})
        listener.settimeout(LONG_S)
        yield listener


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    [sock] = listen_for(section(), {})
    with sock:
        sock.settimeout(LONG_S)
        yield sock


def test_a_client_that_speaks_is_accepted_with_its_bytes(patient: socket.socket) -> None:
    with socket.create_connection(patient.getsockname()) as client:
        client.sendall(b"PRI")
        with patient.accept()[0] as seen:
            seen.setblocking(False)
            assert seen.recv(3) == b"PRI"


def test_a_silent_client_is_accepted_after_a_second(listener: socket.socket) -> None:
    began = time.monotonic()
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as seen:
        assert time.monotonic() - began > DEFER_ACCEPT_S / 2
        client.sendall(b"late")
        assert seen.recv(4, socket.MSG_WAITALL) == b"late"
        seen.sendall(b"answer")
        assert client.recv(6, socket.MSG_WAITALL) == b"answer"


def test_a_client_that_connects_and_leaves_is_accepted_as_one_that_has_left(patient: socket.socket) -> None:
    """A load balancer's health check. The connect itself is the kernel's answer."""
    with socket.create_connection(patient.getsockname()) as client:
        client.shutdown(socket.SHUT_RDWR)
        with patient.accept()[0] as seen:
            assert seen.recv(1) == b""


def test_a_client_that_resets_before_it_speaks_is_the_kernels_alone(patient: socket.socket) -> None:
    with socket.create_connection(patient.getsockname()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with socket.create_connection(patient.getsockname()) as other:
        other.sendall(b"x")
        with patient.accept()[0] as seen:
            assert seen.getpeername() == other.getsockname()


@pytest.mark.parametrize("defer", [True, False])
def test_the_listener_decides(defer: bool) -> None:
    [sock] = listen_for(section(defer_accept=defer), {})
    with sock:
        assert deferred_s(sock) == (DEFER_ACCEPT_S if defer else 0)


@pytest.mark.parametrize(("passed_s", "defer"), [(0, True), (0, False), (7, True), (7, False)])
def test_what_a_socket_unit_has_set_stays_if_the_listener_defers_at_all(passed_s: int, defer: bool) -> None:
    wanted = ListenerSection.model_validate({"systemd": "clients", "defer_accept": defer})
    with socket.create_server(("127.0.0.1", 0)) as passed:
        passed.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, passed_s)
        assert listen_for(wanted, {"clients": [passed]}) == [passed]
        assert deferred_s(passed) == ((passed_s or DEFER_ACCEPT_S) if defer else 0)


def test_a_unix_socket_that_systemd_passes_has_no_such_option(tmp_path: Path) -> None:
    wanted = ListenerSection.model_validate({"systemd": "clients"})
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(tmp_path / "s"))
        passed.listen()
        assert listen_for(wanted, {"clients": [passed]}) == [passed]


def test_ports_of_the_operator_wait_for_nobody() -> None:
    """Metrics, the page, the authority: few clients, and each is accepted at once."""
    [sock] = bind("127.0.0.1", 0)
    with sock:
        assert deferred_s(sock) == 0
