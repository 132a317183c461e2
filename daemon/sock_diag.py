"""Asks the kernel by netlink (sock_diag(7)) which sockets listen: the kernel walks the listeners and nothing else.

/proc/net/tcp has the same, but the kernel fills a page of it before it answers, and after the last listener it walks the
table of connections: 4 ms for an empty table on a machine with 24 GiB. A booting satellite asks this a hundred times a
second. By netlink it takes 60 µs.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

Socket = tuple[str, int]
"""A listening socket: its inode, and the user that has opened it."""
Listening = tuple[int, bytes, Socket]
"""A listener: port, address it is bound to (packed, as `ipaddress` has it), and its socket."""

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_LISTEN = 10

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port id."""
REQUEST = struct.Struct("=BBBBI48x")
"""struct inet_diag_req_v2: family, protocol, extensions, padding, mask of states, socket id (any)."""
LOOKUP = struct.Struct("=BBBBI 2s2x 16s16x 4x 8s")
"""The same with a socket id: source port and address; any destination and interface; INET_DIAG_NOCOOKIE."""
NO_COOKIE = b"\xff" * 8
ANSWER = struct.Struct("=4x 2s 2x 16s 16x 12x 12x I I")
"""struct inet_diag_msg: the id's source port and address; uid and inode behind expiry and queues."""
ANSWER_BYTES = 64 << 10


class Lookup:
    """Looks listeners up, one after the other, over one socket of its own, which is opened at the first question.

    To open and to close a netlink socket costs far more than the question. Used by one thread.
    """

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._asked = 0

    def close(self) -> None:
        """Close the socket; a later question opens another. Idempotent."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def find_listener(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Socket | None:
        """The socket that would get a connection to `address` and `port`; None if no process listens there.

        The kernel looks it up as for the connection itself, also a dual-stack listener: some µs, however many listen. Raises
        OSError if the kernel has no sock_diag, or a sandbox no AF_NETLINK.
        """
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        source = port.to_bytes(2, "big"), address.packed.ljust(16, b"\0")
        try:
            data = self._ask(LOOKUP.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF, *source, NO_COOKIE))
        except BaseException:
            self.close()  # an answer that comes later would be taken for the next question's
            raise
        _, kind, _, _, _ = HEADER.unpack_from(data)
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, HEADER.size)[0]
            if code == errno.ENOENT:
                return None
            raise OSError(code, "sock_diag")
        _, _, user, inode = ANSWER.unpack_from(data, HEADER.size)
        return str(inode), user

    def _ask(self, body: bytes) -> bytes:
        """Returns the answer to this question. Raises OSError."""
        if self._netlink is None:
            self._netlink = _open()
        self._asked = self._asked + 1 & 0xFFFFFFFF
        header = HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._asked, 0)
        self._netlink.send(header + body)
        data = self._netlink.recv(ANSWER_BYTES, socket.MSG_DONTWAIT)  # answered within the send
        _, _, _, answered, _ = HEADER.unpack_from(data)
        if answered != self._asked:
            raise OSError(errno.EBADMSG, "sock_diag answered another question")
        return data


def find_listener(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Socket | None:
    """Look one listener up: see Lookup."""
    lookup = Lookup()
    try:
        return lookup.find_listener(address, port)
    finally:
        lookup.close()


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


def dump_listeners(family: socket.AddressFamily) -> Iterator[Listening]:
    """Every listener of this network namespace.

    Raises OSError if the kernel has no sock_diag, or a sandbox no AF_NETLINK.
    """
    with _open() as netlink:
        body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN)
        flags = NLM_F_REQUEST | NLM_F_DUMP
        netlink.send(HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 0, 0) + body)
        while True:
            data = netlink.recv(ANSWER_BYTES)  # a dump is answered as it is read: this never waits
            at = 0
            while at < len(data):
                length, kind, _, _, _ = HEADER.unpack_from(data, at)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, at + HEADER.size)[0]
                    raise OSError(code, "sock_diag")
                bound_port, bound, user, inode = ANSWER.unpack_from(data, at + HEADER.size)
                address = bound[:4] if family == socket.AF_INET else bound
                yield int.from_bytes(bound_port, "big"), address, (str(inode), user)
                at += (length + 3) & ~3  # NLMSG_ALIGN
