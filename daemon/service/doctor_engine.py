"""What `bentpipe doctor` says of the engine's options in a configuration, and of the kernel's settings for them."""

import os
from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.engine import EngineSection
from bentpipe.config.sources import ConfigErrors
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.service.installed import read_operators_config

COOKIES_REMEDY = "silent clients can fill the kernel's queue of new connections: sysctl net.ipv4.tcp_syncookies=1"
POLL_REMEDY = (
    "a thread that polls takes time from everything else: set threads below the number of cores, or busy_poll = 0"
)


def check_syncookies(proc: Path = Path("/proc")) -> Finding:
    """net.ipv4.tcp_syncookies: with `defer_accept` a silent client is in the kernel's queue for a second."""
    if int((proc / "sys/net/ipv4/tcp_syncookies").read_text()):
        return Finding(Severity.OK, "tcp_syncookies", "on")
    return Finding(Severity.WARN, "tcp_syncookies", "off", COOKIES_REMEDY)


def engine_findings(engine: EngineSection, cores: int | None = None, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Look at `busy_poll` and `notsent_lowat`; `cores` are those that this process may use, unless they are given."""
    cores = cores or len(os.sched_getaffinity(0))
    threads = engine.threads or cores
    if not engine.busy_poll_s:
        yield Finding(Severity.OK, "busy_poll", "off")
    else:
        words = f"{engine.busy_poll_s * 1e6:.0f} us; {threads} threads, {cores} cores"
        spare = threads < cores
        yield Finding(Severity.OK if spare else Severity.WARN, "busy_poll", words, "" if spare else POLL_REMEDY)
    if engine.notsent_lowat:
        yield Finding(Severity.OK, "notsent_lowat", f"{engine.notsent_lowat} bytes")
    else:
        system = (proc / "sys/net/ipv4/tcp_notsent_lowat").read_text().strip()
        yield Finding(Severity.OK, "notsent_lowat", f"the system's, {system} bytes")


def configured_engine(config_path: Path) -> Iterator[Finding]:
    """The same for a configuration's file; nothing if it cannot be read, which is a finding of its own elsewhere."""
    try:
        engine = read_operators_config(config_path).config.engine
    except (ConfigErrors, OSError):
        return
    yield from engine_findings(engine)
