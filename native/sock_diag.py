"""The binding of the look-up of listeners in C. include/bp.h says what it does."""

import dataclasses
from typing import Protocol, cast

from bentpipe.native.lib import check, ffi, lib


@dataclasses.dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening socket: its inode, and the user that has opened it."""

    inode: int
    uid: int


class _CListener(Protocol):
    inode: int
    uid: int


class _CLookup(Protocol):
    fd: int


class ListenerLookup:
    """Looks listeners up, one after the other. Only one thread may use it."""

    def __init__(self) -> None:
        self._c = ffi.new("struct bp_lookup *")
        self._found = ffi.new("struct bp_listener *")
        lib.bp_lookup_init(self._c)

    def close(self) -> None:
        """Close its socket; a later question opens another. Idempotent."""
        lib.bp_lookup_close(self._c)

    def fileno(self) -> int:
        """Its socket; -1 while it has none."""
        return cast(_CLookup, self._c).fd

    def find(self, address: bytes, port: int) -> ListeningSocket | None:
        """The socket that would get a connection to `address` (packed) and `port`; None if no process listens there.

        Raises OSError if the kernel has no sock_diag, or a sandbox no AF_NETLINK.
        """
        found = lib.bp_lookup_listener(self._c, address, len(address), port, self._found)
        check(found)
        c = cast(_CListener, self._found)
        return ListeningSocket(c.inode, c.uid) if found else None
