"""Who listens, asked by C: what daemon/sock_diag.py finds, on real sockets; in this process and under ASan and UBSan."""

import concurrent.futures
import contextlib
import ipaddress
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from beds.fuzz.asker import Asker, asker
from bentpipe.daemon.sock_diag import (
    HEADER,
    LOOKUP,
    NLM_F_REQUEST,
    NO_COOKIE,
    SOCK_DIAG_BY_FAMILY,
    find_listener,
)
from bentpipe.native.sock_diag import ListenerLookup, ListeningSocket

Find = Callable[[bytes, int], ListeningSocket | None]


@pytest.fixture(scope="module")
def process() -> Iterator[Asker]:
    with asker() as made:
        yield made


@pytest.fixture(params=["in process", "sanitized"])
def find(request: pytest.FixtureRequest, process: Asker) -> Iterator[Find]:
    if request.param == "sanitized":
        yield process.find_listener
    else:
        with contextlib.closing(ListenerLookup()) as lookup:
            yield lookup.find


def found_by(find: Find, host: str, port: int) -> ListeningSocket | None:
    """Ask both. Raises AssertionError where they differ."""
    address = ipaddress.ip_address(host)
    expected, found = find_listener(address, port), find(address.packed, port)
    if expected is None:
        assert found is None
    else:
        assert found == ListeningSocket(int(expected[0]), expected[1])
    return found


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize(
    ("bound", "asked", "is_found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "127.9.9.9", True),
        ("0.0.0.0", "::1", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("::1", "::1", True),
        ("::", "::1", True),
        ("::", "127.0.0.1", False),
        ("::1", "127.0.0.1", False),
        ("::1", "::ffff:127.0.0.1", False),
    ],
)
def test_addresses(bound: str, asked: str, is_found: bool, find: Find) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as server:
        port = server.getsockname()[1]
        expected = ListeningSocket(inode(server), os.geteuid()) if is_found else None
        assert found_by(find, asked, port) == expected
    assert found_by(find, asked, port) is None


def test_a_dual_stack_listener_takes_ipv4_too(find: Find) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        expected = ListeningSocket(inode(server), os.geteuid())
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert found_by(find, host, server.getsockname()[1]) == expected


def test_the_more_exact_address_is_found(find: Find) -> None:
    """A connection reaches the listener of its very address, if there is one beside a wildcard's."""
    with contextlib.ExitStack() as stack:
        exact = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        port = exact.getsockname()[1]
        every = stack.enter_context(socket.create_server(("0.0.0.0", port), reuse_port=True))
        assert found_by(find, "127.0.0.1", port) == ListeningSocket(inode(exact), os.geteuid())
        assert found_by(find, "127.0.0.2", port) == ListeningSocket(inode(every), os.geteuid())


def test_several_listeners_of_one_port(find: Find) -> None:
    """The kernel names one of them, and they are all of one user."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        port = first.getsockname()[1]
        others = [stack.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True)) for _ in range(3)]
        found = found_by(find, "127.0.0.1", port)
        assert found is not None
        assert found.inode in [inode(each) for each in (first, *others)]
        assert found.uid == os.geteuid()


def test_what_is_bound_or_connected_does_not_listen(find: Find) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        assert found_by(find, "127.0.0.1", client.getsockname()[1]) is None
        accepted, _ = server.accept()
        stack.enter_context(accepted)
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        assert found_by(find, "127.0.0.1", bound.getsockname()[1]) is None
        port = server.getsockname()[1]
        assert found_by(find, "127.0.0.1", port) == ListeningSocket(inode(server), os.geteuid())
        server.close()
        assert found_by(find, "127.0.0.1", port) is None, "the connections that it has accepted do not count"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to open a socket as another user")
def test_the_user_is_the_one_that_opened_it(find: Find) -> None:
    os.seteuid(12_345)
    try:
        server = socket.create_server(("127.0.0.1", 0))
    finally:
        os.seteuid(0)
    with server:
        assert found_by(find, "127.0.0.1", server.getsockname()[1]) == ListeningSocket(inode(server), 12_345)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 15, 17, 64])
def test_an_address_of_another_size_is_refused(size: int, find: Find) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        find(bytes(size), 1)


def test_each_thread_has_its_own() -> None:
    def ask(server: socket.socket) -> set[ListeningSocket | None]:
        with contextlib.closing(ListenerLookup()) as lookup:
            return {lookup.find(bytes((127, 0, 0, 1)), server.getsockname()[1]) for _ in range(500)}

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        with concurrent.futures.ThreadPoolExecutor(len(servers)) as threads:
            found = list(threads.map(ask, servers))
        assert found == [{ListeningSocket(inode(server), os.geteuid())} for server in servers]


def test_an_answer_is_never_taken_for_another_questions() -> None:
    """A question whose answer was not read leaves it in the socket: the next one fails, and then all is well."""
    lookup, here = ListenerLookup(), bytes((127, 0, 0, 1))
    with contextlib.closing(lookup), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        expected = ListeningSocket(inode(server), os.geteuid())
        assert lookup.find(here, port) == expected
        header = HEADER.pack(HEADER.size + LOOKUP.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
        unread = LOOKUP.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF, b"\0\1", here, NO_COOKIE)
        with socket.socket(fileno=os.dup(lookup.fileno())) as netlink:
            netlink.send(header + unread)
        with pytest.raises(OSError, match="Bad message"):
            lookup.find(here, port)
        assert lookup.fileno() == -1, "the socket with the answer that is left is closed"
        assert lookup.find(here, port) == expected


def test_a_closed_lookup_opens_its_socket_again() -> None:
    lookup = ListenerLookup()
    assert lookup.fileno() == -1, "it is opened at the first question"
    assert lookup.find(bytes(4), 1) is None
    assert os.readlink(f"/proc/self/fd/{lookup.fileno()}").startswith("socket:")
    assert not os.get_inheritable(lookup.fileno())
    lookup.close()
    lookup.close()
    assert lookup.fileno() == -1
    assert lookup.find(bytes(4), 1) is None
    lookup.close()


SANDBOXED = """
import ctypes, errno, os, struct, sys
from bentpipe.native.sock_diag import ListenerLookup

def step(code, value, yes=0, no=0):
    return struct.pack("HBBI", code, yes, no, value)

LOAD, IS, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
CALL, FIRST_ARGUMENT = 0, 16  # in struct seccomp_data
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
call, family = map(int, sys.argv[1:])
steps = (
    *(step(LOAD, CALL), step(IS, call, 0, 3), step(LOAD, FIRST_ARGUMENT), step(IS, family, 0, 1)),
    *(step(RETURN, ERRNO | errno.EAFNOSUPPORT), step(RETURN, ALLOW)),
)
text = ctypes.create_string_buffer(b"".join(steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
for asked in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)):
    if libc.prctl(*asked):
        raise OSError(ctypes.get_errno(), "prctl")
before = os.listdir("/proc/self/fd")
lookup = ListenerLookup()
for _ in range(3):
    try:
        print(lookup.find(bytes(4), 1))
    except OSError as exc:
        print(errno.errorcode[exc.errno], lookup.fileno(), os.listdir("/proc/self/fd") == before)
"""
SOCKET_CALLS = {"x86_64": 41, "aarch64": 198}
"""socket(2)'s number."""


@pytest.mark.skipif(platform.machine() not in SOCKET_CALLS, reason="needs the number of socket(2)")
def test_a_sandbox_without_netlink() -> None:
    arguments = [str(SOCKET_CALLS[platform.machine()]), str(int(socket.AF_NETLINK))]
    ran = subprocess.run(
        [sys.executable, "-P", "-c", SANDBOXED, *arguments], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == ["EAFNOSUPPORT -1 True"] * 3
