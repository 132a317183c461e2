"""Waits until a satellite's port accepts connections.

One probe serves all waiting clients, so no crowd dials a booting port.
"""

import contextlib
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.model import Address

RETRY_S = 0.02
"""Pause between attempts. On the average a held client waits half of it longer."""
SELDOM_S = 2.0
"""The longest pause, doubling from RETRY_S, if the machine is not ours: its port may stay closed for days, and no boot ends
that. Fifty such machines would otherwise cost thousands of connections a second."""
ATTEMPT_S = 1.0
"""Deadline of one attempt: a booting host drops SYNs, and the kernel would send the next one only seconds later."""


REFUSED = "nothing listens on port {}"
SILENT = "port {} does not answer; a firewall or security group may forbid it"
"""Why it is not ready, for clients. The address is left out: only the operator may know it."""

Tell = Callable[[str, bool], None]
"""Takes the reason for failure, and whether nothing at all has answered: a machine that refuses can be reached."""


async def wait_listening(address: Address, tell: Tell = lambda words, silent: None, *, most_s: float = RETRY_S) -> None:
    """Return once a TCP connection to `address` was accepted. It tries for ever, until the caller's cancel scope ends it.

    The reason for failure is reported whenever it changes. The pause between attempts doubles up to `most_s`.
    """
    told, pause_s = "", RETRY_S
    while True:
        words, silent = SILENT.format(address.port), True
        with trio.move_on_after(ATTEMPT_S):
            try:
                await try_connection(address)
            except ConnectionRefusedError:
                words, silent = REFUSED.format(address.port), False
            except OSError:
                pass
            else:
                return
        if words != told:
            told = words
            tell(words, silent)
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, most_s)


async def try_connection(address: Address) -> None:
    """Connect and close. Raises OSError.

    A numeric address needs no resolver and no race between addresses: a tenth of the time of `open_tcp_stream`, which counts
    if hundreds of satellites are woken at once.
    """
    family = _family(address.host)
    if family is None:
        await (await trio.open_tcp_stream(address.host, address.port)).aclose()
        return
    with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
        await sock.connect((address.host, address.port))


def _family(host: str) -> socket.AddressFamily | None:
    """Of a numeric address; None if it is not one, or has a zone."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return family
    return None


async def wait_listening_seldom(address: Address, tell: Tell) -> None:
    """The same for a machine that is not ours."""
    await wait_listening(address, tell, most_s=SELDOM_S)
