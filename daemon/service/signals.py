"""The root of the daemon's tasks, and what signals do. Nothing owns this task: if it fails, the daemon ends."""

import logging
import signal
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.service import sd
from bentpipe.daemon.service.engine_watch import stuck_threads
from bentpipe.daemon.service.garbage import run_garbage
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.statistics import ask_and_log_statistics
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe")


async def run_with_signals(
    serve: Callable[[trio.TaskStatus[Daemon]], Awaitable[int]], stop_early: Callable[[], None] = lambda: None
) -> int:
    """Run `serve`, and act on signals meanwhile. Returns what `serve` returns; 0 if a signal ended it before it had started.

    `stop_early` is called if such a signal was one that stops everything. Raises what `serve` raises: OSError or TlsError if
    it could not start.
    """
    with trio.open_signal_receiver(
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    ) as signals:
        cut = 0
        is_stopped_early = False
        cannot_start: OSError | TlsError | None = None
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal cut, cannot_start
                try:
                    cut = await serve(started)
                except (OSError, TlsError) as exc:  # not in a group: raised before anything was started
                    cannot_start = exc
                nursery.cancel_scope.cancel()

            started = _Started()
            nursery.start_soon(run)

            def well() -> bool:
                # A data plane of its own has a watchdog of its own: a new control plane would not help.
                engine = None if started.daemon is None else started.daemon.engine
                return engine is None or not stuck_threads(engine.threads())

            nursery.start_soon(run_owned, Owner("watchdog"), sd.run_watchdog, well)
            nursery.start_soon(run_owned, Owner("garbage"), run_garbage)
            async for number in signals:
                name = signal.Signals(number).name
                with contained(Owner("signal", name)):
                    log.info("signal", extra={"fields": {"signal": name}})
                    if number == signal.SIGUSR1 and started.daemon is not None:
                        owner = Owner("statistics", "", Decision.GIVE_UP)
                        nursery.start_soon(run_owned, owner, ask_and_log_statistics, started.daemon)
                    else:
                        is_stopped_early |= started.daemon is None and number in (signal.SIGTERM, signal.SIGINT)
                        _act_on(signal.Signals(number), started.daemon, nursery.cancel_scope)
    if is_stopped_early:
        stop_early()
    if cannot_start is not None:
        raise cannot_start
    return cut


def _act_on(number: signal.Signals, daemon: Daemon | None, everything: trio.CancelScope) -> None:
    """Do what a signal asks for. SIGUSR2 leaves a data plane of its own as it is; without one it drains as SIGTERM does.

    A daemon that has not started yet has no clients to drain, and ends at once."""
    match number:
        case signal.SIGHUP if daemon is not None:
            daemon.reload()
        case signal.SIGUSR2 if daemon is not None:
            daemon.leave_satellites()
            if daemon.planes is not None:
                daemon.leave.set()
            daemon.drain.set()
        case signal.SIGTERM | signal.SIGINT if daemon is not None:
            daemon.drain.set()
        case signal.SIGTERM | signal.SIGINT | signal.SIGUSR2:
            everything.cancel()
        case _:
            log.warning("not started yet: the signal is ignored", extra={"fields": {"signal": number.name}})


class _Started(trio.TaskStatus[Daemon]):
    """Keeps the daemon for the signal loop and tells systemd that it is ready."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None

    def started(self, value: Daemon | None = None) -> None:
        """Called once the daemon's ports are open."""
        self.daemon = value
        sd.notify("READY=1")
