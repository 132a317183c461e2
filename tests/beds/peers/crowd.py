"""Thousands of raw HTTP/2 clients in one process, each a socket and a few bytes: they make one call, or stop before it."""

import dataclasses
import select
import socket
import ssl
import time
from collections.abc import Callable

import hpack

from beds.http2 import EMPTY_SETTINGS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS_ACK = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
END_STREAM, END_HEADERS = 0x1, 0x4
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def headers(satellite: str, token: str, path: str = "/bentpipe.demo.Satellite/Echo") -> bytes:
    """A gRPC request's header block, without anything that outlives it in a dynamic table."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "edge"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("satellite_name", satellite),
        ("satellite_org", "acme"),
        ("satellite_token", token),
    ]
    return hpack.Encoder().encode(fields)


def call(satellite: str, token: str, message: bytes = b"") -> bytes:
    """A client's whole opening with one complete unary call on stream 1."""
    body = b"\0" + len(message).to_bytes(4) + message
    return (
        PREFACE
        + EMPTY_SETTINGS
        + frame(HEADERS, END_HEADERS, 1, headers(satellite, token))
        + frame(DATA, END_STREAM, 1, body)
    )


@dataclasses.dataclass(slots=True)
class Member:
    sock: socket.socket
    unsent: bytes
    shaken: bool = True
    """Whether TLS, if there is any, is ready."""
    received: bytearray = dataclasses.field(default_factory=bytearray)
    ended: bool = False


class Crowd:
    """Clients of one address; `turn` does what can be done now."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._epoll = select.epoll()
        self.members: dict[int, Member] = {}

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_error: object) -> None:
        self._epoll.close()
        for member in self.members.values():
            member.sock.close()

    def join(
        self, count: int, opening: bytes, *, address: tuple[str, int] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Begin so many connections that say `opening`; an empty one says nothing at all."""
        for number in range(count):
            sock = socket.socket()
            if tls is not None:
                sock.connect(address or self._address)
                sock = tls.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
            sock.setblocking(False)
            if tls is None:
                sock.connect_ex(address or self._address)
            self.members[sock.fileno()] = Member(sock, opening, shaken=tls is None)
            self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT)
            if number % 100 == 99:
                self.turn(0)

    def turn(self, timeout_s: float = 0.1) -> list[Member]:
        """Do what can be done, after waiting for it at most so long. Returns whom it concerned."""
        moved = [self.members[fd] for fd, _ in self._epoll.poll(timeout_s)]
        for member in moved:
            fd = member.sock.fileno()
            try:
                if isinstance(member.sock, ssl.SSLSocket) and not member.shaken:
                    member.sock.do_handshake()
                    member.shaken = True
                if member.unsent:
                    member.unsent = member.unsent[member.sock.send(member.unsent) :]
                if not member.unsent:
                    self._epoll.modify(fd, select.EPOLLIN)
                self._read(member)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                self._end(member)
        return moved

    def _read(self, member: Member) -> None:
        while True:
            data = member.sock.recv(1 << 16)
            if not data:
                self._end(member)
                return
            member.received += data

    def _end(self, member: Member) -> None:
        member.ended = True
        self._epoll.unregister(member.sock)

    def until(self, done: Callable[[Member], bool], deadline_s: float) -> int:
        """Go on until it is so for each. Returns for how many it is when the time is up."""
        deadline = time.monotonic() + deadline_s
        left = {id(member) for member in self.members.values() if not done(member)}
        while left and time.monotonic() < deadline:
            left -= {id(member) for member in self.turn() if done(member)}
        return len(self.members) - len(left)


def answered(member: Member) -> bool:
    """Whether stream 1 got a message and its trailers: a call that failed has no message."""
    return answered_of(member.received)


def answered_of(received: bytes | bytearray) -> bool:
    """The same of the bytes that a client has received."""
    at = 0
    message = False
    while at + 9 <= len(received):
        message |= received[at + 3] == DATA
        if received[at + 3] == HEADERS and received[at + 4] & END_STREAM:
            return message
        at += 9 + int.from_bytes(received[at : at + 3])
    return False


def ended(member: Member) -> bool:
    """Whether the daemon closed the connection."""
    return member.ended
