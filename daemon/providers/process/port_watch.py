"""Notices when satellites that boot come to listen: one task looks for all of them, in the same answer of the kernel.

A look costs the same however many boot. If each satellite had a task that looks, three hundred that boot at once would keep
a core busy with looking.
"""

import contextlib
from collections.abc import Iterator

import trio

from bentpipe.daemon.model import Address
from bentpipe.daemon.providers.process.listening import Listeners, Suspects
from bentpipe.daemon.tasks import Owner, contained

LISTEN_POLL_S = 0.01
"""Time between looks at the kernel's list of listeners while a satellite boots; the kernel cannot announce one."""
FOUND_A_TURN = 16
"""The most satellites that are found to listen in one turn: whose a socket is takes some 0.1 ms to find out."""


class PortWatch:
    """Satellites that boot, and the kernel's listeners. It finds nothing before `run_port_watch` runs."""

    def __init__(self) -> None:
        self.listeners = Listeners()
        self._expected: dict[trio.Event, tuple[Address, Suspects, set[str], Owner]] = {}
        self._some = trio.Event()

    @contextlib.contextmanager
    def expect(self, address: Address, suspects: Suspects, known: set[str]) -> Iterator[trio.Event]:
        """Look for a listener of these processes while the block runs. The event is set once there is one.

        `known` receives its inode: see Listeners.whose.
        """
        listening = trio.Event()
        self._expected[listening] = address, suspects, known, Owner("process port", str(address))
        self._some.set()
        try:
            yield listening
        finally:
            self._expected.pop(listening, None)

    async def run_port_watch(self) -> None:
        """Look, for ever."""
        while True:
            if not self._expected:
                self._some = trio.Event()
                await self._some.wait()
            await self._look()
            await trio.sleep(LISTEN_POLL_S)

    async def _look(self) -> None:
        found = 0
        for listening, (address, suspects, known, owner) in list(self._expected.items()):
            with contained(owner):
                if not self.listeners.is_listening(address.host, address.port, suspects, known):
                    continue
                self._expected.pop(listening, None)
                listening.set()
                found += 1
                if found % FOUND_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
