"""Waits until a satellite's port accepts connections: one probe for all who wait, so a herd does not dial a booting port."""

import trio

from bentpipe.daemon.model import Address

RETRY_S = 0.02
"""Between attempts; a held client feels it on average by half."""
ATTEMPT_S = 1.0
"""One attempt: a booting host swallows SYNs, and the kernel would send the next one only seconds later."""


async def wait_listening(address: Address) -> None:
    """Return once a TCP connection to `address` was accepted; tries for ever, the caller's cancel scope ends it."""
    while True:
        with trio.move_on_after(ATTEMPT_S):
            try:
                stream = await trio.open_tcp_stream(address.host, address.port)
            except OSError:
                pass
            else:
                await stream.aclose()
                return
        await trio.sleep(RETRY_S)
