"""Waits until a satellite's port accepts connections: one probe for all who wait, so a herd does not dial a booting port."""

from collections.abc import Callable

import trio

from bentpipe.daemon.model import Address

RETRY_S = 0.02
"""Between attempts; a held client feels it on average by half."""
ATTEMPT_S = 1.0
"""One attempt: a booting host swallows SYNs, and the kernel would send the next one only seconds later."""


REFUSED = "nothing listens on port {}"
SILENT = "port {} does not answer; a firewall or security group may forbid it"
"""Why it is not ready, for the clients: without the address, which is the operator's affair."""


async def wait_listening(address: Address, tell: Callable[[str], None] = lambda words: None) -> None:
    """Return once a TCP connection to `address` was accepted; tries for ever, the caller's cancel scope ends it.

    Why it is not is told whenever that changes.
    """
    told = ""
    while True:
        words = SILENT.format(address.port)
        with trio.move_on_after(ATTEMPT_S):
            try:
                stream = await trio.open_tcp_stream(address.host, address.port)
            except ConnectionRefusedError:
                words = REFUSED.format(address.port)
            except OSError:
                pass
            else:
                await stream.aclose()
                return
        if words != told:
            told = words
            tell(words)
        await trio.sleep(RETRY_S)
