"""Where connections would live if `bentpipe serve` were started with a configuration on this host."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.config.sources import ConfigErrors
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.service.installed import InstalledService, read_operators_config, service_of
from bentpipe.daemon.service.plane_form import PlaneForm, choose_form
from bentpipe.daemon.sock_diag import find_listener

SUBJECT = "connections"
LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
NO_SOCK_DIAG = "clients of local satellites wait while the control plane is away: modprobe inet_diag tcp_diag"


def form_here(config: Config, config_path: Path, service: InstalledService | None) -> PlaneForm:
    """Decide as `serve` would: started by its units if the configuration is the installed `service`'s, else by a shell."""
    if service is None:
        return choose_form(config, config_path, is_service=False)
    # The file that says "inside" beside units of two processes is told as such, and `serve` refuses it.
    given = service.planes if config.daemon.data_plane != "inside" else None
    return choose_form(config, config_path, given, is_service=True)


def form_findings(config_path: Path) -> Iterator[Finding]:
    """The form, and whether the kernel lets a data plane see who listens; nothing if the file cannot be read."""
    try:
        config = read_operators_config(config_path, check_files=False).config
    except (ConfigErrors, OSError):
        return
    form = form_here(config, config_path, service_of(config_path))
    yield Finding(Severity.WARN if form.warning else Severity.OK, SUBJECT, form.words, form.warning)
    if form.folder is None:
        return
    yield Finding(
        Severity.OK, "admission", "by snapshots" if config.daemon.by_snapshots else "asked, as [daemon] admission says"
    )
    if config.daemon.by_snapshots and any(each.process is not None for each in config.machines):
        yield judge_sock_diag(why_no_sock_diag())


def why_no_sock_diag() -> str:
    """Ask the kernel for a listener; "" if it answers."""
    try:
        find_listener(LOOPBACK, 1)
    except OSError as exc:
        return str(exc.strerror or exc)
    return ""


def judge_sock_diag(reason: str) -> Finding:
    """`reason`: why it does not answer; "" if it does."""
    if reason:
        return Finding(Severity.WARN, "sock_diag", f"no ({reason})", NO_SOCK_DIAG)
    return Finding(Severity.OK, "sock_diag", "a data plane can see which process listens on a port")
