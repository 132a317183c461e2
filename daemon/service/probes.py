"""The pages `/healthz` and `/readyz` beside the metrics: is the daemon alive, and should it get clients.

`/healthz` fails only if a new process would help. `/readyz` fails while clients had better go to another host. Each answer
has a line for each check; `?exclude=NAME` leaves one out, as in Kubernetes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs

from bentpipe.daemon.service.engine_watch import stuck_threads
from bentpipe.daemon.service.parts import Daemon


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One check: `problem` says what is wrong, or "" if nothing is."""

    name: str
    problem: Callable[[Daemon], str]


def _engine(daemon: Daemon) -> str:
    stuck = stuck_threads(daemon.engines.threads())
    return f"{len(stuck)} threads in C are stuck: their connections are not served" if stuck else ""


def _listeners(daemon: Daemon) -> str:
    if not daemon.accepting.is_set():
        return "the daemon is still starting"
    failing = [f"{host}:{port}" for each in daemon.ports.listeners if each.failing for host, port in [each.address]]
    return f"cannot accept at {', '.join(failing)}; the log says why" if failing else ""


def _draining(daemon: Daemon) -> str:
    return "the daemon is draining: it ends soon" if daemon.drain.is_set() else ""


def _store(daemon: Daemon) -> str:
    """Routing goes on without a store, but nothing new is learnt: tokens, revocations, launches."""
    if daemon.recorder is not None and daemon.recorder.failing:
        return f"the ledger cannot be written: {daemon.recorder.failing}"
    if daemon.account_parts.admission.store_fails:
        return "the tokens of the store cannot be read; the log says why"
    return ""


ENGINE = Check("engine", _engine)
ALIVE = (ENGINE,)
READY = (Check("listeners", _listeners), Check("draining", _draining), Check("store", _store), ENGINE)
PAGES = {b"/healthz": ALIVE, b"/readyz": READY}


def examine(daemon: Daemon, checks: Sequence[Check], query: str) -> tuple[bool, str]:
    """Whether all is well, and the page. `query` is the request's, behind the "?"."""
    excluded = parse_qs(query).get("exclude", [])
    lines, well = [], True
    for check in checks:
        if check.name in excluded:
            lines.append(f"[+] {check.name}: excluded")
            continue
        problem = check.problem(daemon)
        well = well and not problem
        lines.append(f"[-] {check.name}: {problem}" if problem else f"[+] {check.name}: fine")
    return well, "\n".join((*lines, "fine" if well else "not fine")) + "\n"
