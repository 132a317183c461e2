"""Whose port listens: the kernel's tables, read from outside."""

import os
import socket

import pytest

from bentpipe.daemon.providers import listening
from bentpipe.daemon.providers.listening import is_listening, listening_inodes_in_proc
from bentpipe.daemon.providers.sock_diag import listening_inodes


def refuse(*_: object) -> list[object]:
    raise OSError("no netlink")


@pytest.fixture(autouse=True, params=["sock_diag", "proc"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the two sources."""
    if request.param == "proc":
        monkeypatch.setattr(listening, "listening_inodes", refuse)
    else:
        monkeypatch.setattr(listening, "listening_inodes_in_proc", refuse)


def own() -> list[int]:
    return [os.getpid()]


@pytest.mark.parametrize(
    ("bound", "asked", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("::1", "::1", True),
        ("::", "::1", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_addresses(bound: str, asked: str, expected: bool) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as server:
        port = server.getsockname()[1]
        assert is_listening(asked, port, own) is expected
    assert not is_listening(asked, port, own)


def test_dual_stack_takes_ipv4_too() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert is_listening("127.0.0.1", server.getsockname()[1], own)


def test_a_stranger_and_a_bound_socket_do_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_listening("127.0.0.1", server.getsockname()[1], lambda: [os.getppid(), 2**22 + 1])
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert not is_listening("127.0.0.1", sock.getsockname()[1], own)


def test_a_connection_on_the_port_does_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        assert not is_listening("127.0.0.1", port, own)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_both_sources_say_the_same(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        found = list(listening_inodes(family, port))
        assert found == list(listening_inodes_in_proc(family, port))
        assert [(str(address), int(inode)) for address, inode in found] == [(host, os.fstat(server.fileno()).st_ino)]
