"""Questions to the kernel by netlink, over one socket."""

import contextlib
import ipaddress
import os
import socket

import pytest

from bentpipe.daemon.sock_diag import (
    HEADER,
    LOOKUP,
    NLM_F_REQUEST,
    NO_COOKIE,
    SOCK_DIAG_BY_FAMILY,
    Lookup,
)


def test_an_answer_is_never_taken_for_another_questions() -> None:
    """A question whose answer was not read leaves it in the socket: the next one fails, and then all is well."""
    lookup, here = Lookup(), ipaddress.ip_address("127.0.0.1")
    with contextlib.closing(lookup), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        inode = str(os.fstat(server.fileno()).st_ino)
        assert lookup.find_listener(here, port) == (inode, os.geteuid())
        netlink = lookup._netlink
        assert netlink is not None
        request = HEADER.pack(HEADER.size + LOOKUP.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
        unread = LOOKUP.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF, b"\0\1", here.packed, NO_COOKIE)
        netlink.send(request + unread)
        with pytest.raises(OSError, match="another question"):
            lookup.find_listener(here, port)
        assert lookup.find_listener(here, port) == (inode, os.geteuid())
