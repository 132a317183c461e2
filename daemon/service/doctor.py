"""`bentpipe doctor`: what this machine has and lacks, one line each, with the remedy. It must never change anything."""

import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from bentpipe.daemon.connections.descriptors import hard_limit
from bentpipe.daemon.connections.greeters import NO_NGHTTP2
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.keeper.cgroup import find_own_cgroup
from bentpipe.daemon.keeper.freezer import find_own_freezer
from bentpipe.daemon.service.doctor_engine import check_syncookies, configured_engine
from bentpipe.daemon.service.doctor_tls import configured_findings
from bentpipe.daemon.service.engine_priority import explain_priority, try_priority
from bentpipe.daemon.service.form_here import form_findings
from bentpipe.native.engine import Ktls, Priority, ktls_self_test
from bentpipe.native.greeting import nghttp2_version
from bentpipe.native.tls import openssl_version

NOFILE_WANTED = 65_536
"""Two descriptors for each connection and each pipe of the engine, and the daemon's own: enough for ten thousand connections
and all pipes of 40 threads."""
FAST_OPENSSL = 3, 2
"""From this version on AES-GCM takes about half of the CPU time for a byte."""
BUILD_WITH_NGHTTP2 = (
    "new connections take more CPU time: install libnghttp2-dev (dnf: libnghttp2-devel), and build bentpipe again"
)
PIPE_PAGES_WANTED = 16_384
"""The kernel's default: 64 MiB of pipes for each user. With less, streams fall back to copying early (pipe(7))."""


USER_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""capabilities(7), with their bits: what the keeper needs to separate satellites."""


def check_kernel() -> Finding:
    """Linux, and its release."""
    if platform.system() != "Linux":
        return Finding(Severity.FAIL, "kernel", platform.system(), "bentpipe runs on Linux only")
    return Finding(Severity.OK, "kernel", platform.release())


def check_openssl() -> Finding:
    """The OpenSSL that the engine is linked to."""
    return judge_openssl(openssl_version())


def judge_openssl(version: str) -> Finding:
    """`version` is as OpenSSL_version(3) has it."""
    found = re.match(r"OpenSSL (\d+)\.(\d+)", version)
    if found is not None and (int(found[1]), int(found[2])) < FAST_OPENSSL:
        remedy = "bytes to TLS clients take about 1.4 times the CPU time of OpenSSL 3.5, which Debian 13 has"
        return Finding(Severity.WARN, "OpenSSL", version, remedy)
    return Finding(Severity.OK, "OpenSSL", version)


def check_greeting() -> Finding:
    """Whether the engine reads greetings: `[daemon] greeting`."""
    return judge_greeting(nghttp2_version())


def judge_greeting(version: str | None) -> Finding:
    """`version` is nghttp2's; None: the engine was built without it."""
    if version is None:
        return Finding(Severity.WARN, "greeting", f"Python alone: {NO_NGHTTP2}", BUILD_WITH_NGHTTP2)
    return Finding(Severity.OK, "greeting", f"in C, with nghttp2 {version}")


def check_ktls() -> Finding:
    """Whether TLS connections can be spliced, by the self-test that the daemon runs at its start. It is never required."""
    usable, words = ktls_self_test()
    if usable == Ktls.TX | Ktls.RX:
        return Finding(Severity.OK, "kTLS", f"yes ({words})")
    remedy = "" if usable else "modprobe tls, or /etc/modules-load.d; until then TLS stays in userspace"
    return Finding(Severity.WARN, "kTLS", f"{'partly' if usable else 'no'} ({words})", remedy)


def check_priority() -> Finding:
    """Which priorities the system grants to the engine's threads: `[engine] priority`."""
    granted, reasons = [Priority.NORMAL], []
    for wanted in (Priority.SLICE, Priority.REALTIME):
        seen = try_priority(wanted)
        if seen.held is wanted:
            granted.append(wanted)
        else:
            reasons.append(explain_priority(wanted, [seen]))
    words = ", ".join(each.name.lower() for each in granted)
    if Priority.SLICE in granted or Priority.REALTIME in granted:
        return Finding(Severity.OK, "priority", f"{words}{f' ({reasons[0]})' if reasons else ''}")
    return Finding(Severity.WARN, "priority", words, "; ".join(reasons))


def check_pipe_pages(proc: Path = Path("/proc")) -> Finding:
    """fs.pipe-user-pages-soft: beyond it, an unprivileged user's pipes have two slots."""
    pages = int((proc / "sys/fs/pipe-user-pages-soft").read_text())
    if pages and pages < PIPE_PAGES_WANTED:
        return Finding(
            Severity.WARN,
            "pipe-user-pages-soft",
            f"{pages} pages",
            f"sysctl fs.pipe-user-pages-soft={PIPE_PAGES_WANTED}",
        )
    return Finding(Severity.OK, "pipe-user-pages-soft", f"{pages} pages" if pages else "no limit")


def check_nofile() -> Finding:
    """How many descriptors this process may open: the daemon raises its limit to the hard limit."""
    hard = hard_limit()
    if hard < NOFILE_WANTED:
        return Finding(
            Severity.WARN, "nofile", str(hard), f"set LimitNOFILE={NOFILE_WANTED} in the unit, or ulimit -Hn"
        )
    return Finding(Severity.OK, "nofile", str(hard))


def check_cgroup(proc: Path = Path("/proc")) -> Finding:
    """A writable cgroup: in it local satellites are frozen and killed as a whole."""
    mountinfo, own = (proc / "self/mountinfo").read_text(), (proc / "self/cgroup").read_text()
    found = {"v2": find_own_cgroup(mountinfo, own), "v1 freezer": find_own_freezer(mountinfo, own)}
    for version, folder in found.items():
        if folder is not None and os.access(folder, os.W_OK):
            return Finding(Severity.OK, "cgroup", f"{version}, {folder} writable")
    named = [f"{version}, {folder}" for version, folder in found.items() if folder is not None]
    seen = f"{' and '.join(named)} not writable" if named else "none"
    return Finding(
        Severity.WARN, "cgroup", seen, "set Delegate=yes in the unit; else satellites are stopped by SIGSTOP"
    )


def check_users(proc: Path = Path("/proc")) -> Finding:
    """Whether this user can give local satellites users of their own: `[processes] uids`."""
    status = (proc / "self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(found.group(1), 16) if found else 0
    missing = [name for name, bit in USER_CAPABILITIES.items() if not held >> bit & 1]
    if not missing:
        return Finding(Severity.OK, "users", "local satellites can have users of their own: [processes] uids")
    remedy = "run bentpipe-keeper.service, or the daemon as root; else builds can read the daemon's keys"
    return Finding(Severity.WARN, "users", f"local satellites run as this user: it lacks {', '.join(missing)}", remedy)


def check_clock() -> Finding:
    """A synchronised clock: the ledger and TLS certificates depend on it."""
    if Path("/run/systemd/timesync/synchronized").exists() or Path("/run/chrony").exists():
        return Finding(Severity.OK, "clock", "synchronised")
    return Finding(Severity.WARN, "clock", "no sign of time synchronisation", "run chrony or systemd-timesyncd")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_kernel,
    check_openssl,
    check_greeting,
    check_ktls,
    check_priority,
    check_pipe_pages,
    check_nofile,
    check_syncookies,
    check_cgroup,
    check_users,
    check_clock,
)


def findings(config_path: Path | None = None) -> Iterator[Finding]:
    """Run every check. If one fails, its line says so, and the others still run. The last are of the configuration."""
    for check in CHECKS:
        try:
            yield check()
        except OSError as exc:
            yield Finding(Severity.WARN, check.__name__.removeprefix("check_"), f"cannot look: {exc}")
    if config_path is not None:
        yield from configured_engine(config_path)
        yield from form_findings(config_path)
        yield from configured_findings(config_path)


def run_doctor(config_path: Path | None = None) -> int:
    """Print the findings. Returns 1 if one of them is a FAIL."""
    seen = list(findings(config_path))
    for finding in seen:
        click.echo(str(finding))
    return int(any(finding.severity is Severity.FAIL for finding in seen))
