"""Whose port listens: the kernel's tables, read from outside."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from bentpipe.daemon.providers.process import listening
from bentpipe.daemon.providers.process.listening import Listeners, Suspects, Whose, read_listeners
from bentpipe.daemon.sock_diag import Lookup, dump_listeners


def refuse(*_: object) -> list[object]:
    raise OSError("no netlink")


@pytest.fixture(autouse=True, params=["sock_diag", "proc"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the two sources."""
    if request.param == "proc":
        monkeypatch.setattr(listening, "dump_listeners", refuse)
        monkeypatch.setattr(Lookup, "find_listener", refuse)
    else:
        monkeypatch.setattr(listening, "read_listeners", refuse)


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    """Those that never trust an older answer."""
    with contextlib.closing(Listeners(fresh_s=-1)) as made:
        yield made


def is_listening(host: str, port: int, suspects: Suspects) -> bool:
    return Listeners(fresh_s=-1).is_listening(host, port, suspects)


own = Suspects(None, lambda: [os.getpid()])
nobody = Suspects(None, list)


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
        assert not is_listening("127.0.0.1", server.getsockname()[1], Suspects(None, lambda: [os.getppid(), 2**22 + 1]))
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
        found = [listener for listener in dump_listeners(family) if listener[0] == port]
        assert found == [listener for listener in read_listeners(family) if listener[0] == port]
        assert found == [(port, socket.inet_pton(family, host), (str(os.fstat(server.fileno()).st_ino), os.geteuid()))]


@pytest.mark.parametrize("uid", [os.geteuid(), os.geteuid() + 1])
def test_a_user_of_its_own_is_enough(uid: int, listeners: Listeners) -> None:
    """No process is searched: nobody else has that user."""
    suspects = Suspects(uid, lambda: pytest.fail("searched"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ours = uid == os.geteuid()
        assert is_listening("127.0.0.1", port, suspects) is ours
        whose = listeners.whose("127.0.0.1", port, suspects, set())
        assert whose is (Whose.OURS if ours else Whose.STRANGER)


def test_many_questions_are_one_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[socket.AddressFamily] = []

    def dump(family: socket.AddressFamily) -> list[object]:
        asked.append(family)
        return []

    monkeypatch.setattr(listening, "_dump", dump)
    listeners = Listeners(fresh_s=60)
    for port in range(1, 300):
        assert not listeners.is_listening("127.0.0.1", port, own)
    assert asked == [socket.AF_INET, socket.AF_INET6]


HERE, ELSEWHERE = "127.77.{}.{}", "127.78.{}.{}"
"""With the process's number: addresses that no neighbour of this test listens on, whose ports may be the same."""


@pytest.mark.parametrize(
    ("bound", "asked", "reached"),
    [
        (HERE, HERE, True),
        ("0.0.0.0", HERE, True),
        (ELSEWHERE, HERE, False),
        ("::", HERE, True),  # dual stack
        ("::1", "::1", True),
    ],
)
def test_whose_a_port_is_now(bound: str, asked: str, reached: bool, listeners: Listeners) -> None:
    """By one lookup, or by the tables where there is none: the same answer."""
    known = set[str]()
    bound, asked = (each.format(os.getpid() % 251, os.getpid() % 241 + 1) for each in (bound, asked))
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=bound == "::") as server:
        port = server.getsockname()[1]
        expected = Whose.OURS if reached else Whose.NOBODY
        assert listeners.whose(asked, port, own, known) is expected
        if reached:
            assert listeners.whose(asked, port, nobody, set()) is Whose.STRANGER
            assert (
                listeners.whose(asked, port, nobody, known) is Whose.OURS
            )  # its socket is known: nobody is looked through
    assert listeners.whose(asked, port, own, known) is Whose.NOBODY
    with socket.create_server((asked, port), family=socket.AF_INET6 if ":" in asked else socket.AF_INET):
        assert listeners.whose(asked, port, nobody, known) is Whose.STRANGER
