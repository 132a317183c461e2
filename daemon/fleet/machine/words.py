"""The messages for clients of a satellite that cannot be used. Pure.

An error's own text is for the operator's log and has the provider's reason; clients get its `peer_hint`.
"""

from typing import assert_never

from bentpipe.daemon.errors import BentpipeError, WakeFailed
from bentpipe.daemon.model import Machine, MachineState

M = MachineState
UNSEEN = "the state of the satellite's machine is unknown"
NOT_OURS = "the satellite has registered itself: the edge host neither wakes it nor puts it to sleep"
DRAINING = "the edge host is shutting down; try again in a moment"


def about(kind: type[BentpipeError], words: str, machine: Machine | None) -> BentpipeError:
    """Make an error of our message and what is known of the machine: its reason for the log, its hint for clients."""
    reason, hint = ("", "") if machine is None else (machine.reason, machine.hint)
    return kind(": ".join(filter(None, (words, reason))), peer_hint=": ".join(filter(None, (words, hint))))


def not_ready(after_s: float) -> str:
    """Say that the satellite was not ready in time."""
    return f"the satellite was not ready after {after_s:.0f} s"


def not_ready_since(after_s: float, machine: Machine, *, called: bool, probe_words: str) -> WakeFailed:
    """Say that the satellite was not ready in time, and how its machine is.

    `called`: this wake has asked for the machine to be started. `probe_words` say why its port does not answer.
    """
    state = _how_it_is(machine, called=called, probe_words=probe_words)
    is_up = machine.state in (M.PENDING, M.RUNNING)
    found = about(WakeFailed, f"{not_ready(after_s)}: {state}", machine if is_up else None)
    return WakeFailed(str(found), peer_hint=found.peer_hint)


def _how_it_is(machine: Machine, *, called: bool, probe_words: str) -> str:
    match machine.state:
        case M.RUNNING:
            port = f"port {machine.address.port}" if machine.address is not None else "its port"
            return f"its machine runs, but {probe_words or f'{port} does not answer'}"
        case M.PENDING:
            return "its machine is still starting"
        case M.STOPPING:
            return "its machine is still going to sleep"
        case M.STOPPED | M.HIBERNATED | M.TERMINATED:
            return "its start was accepted, and has not been seen yet" if called else "it was not started"
        case _:
            assert_never(machine.state)
