"""Where connections live: in a process of their own, or inside the daemon. And where the sockets of such processes lie.

`[daemon] data_plane` says it, or leaves it to `choose_form`: two processes wherever a control plane can start its data
plane and a later one can find it. A unit of systemd that gives no folder (`--planes`) is one process: what it starts would
be in its cgroup, have its rights and end with it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.planes.sockets import is_private, plane_socket_path
from bentpipe.daemon.service import sd

ROOTS_FOLDER, USERS_FOLDER = Path("/run"), Path("/tmp")
"""Not XDG_RUNTIME_DIR, which logind removes when the user's last session ends: connections may go on then, and the next
daemon must find them. Nor $TMPDIR, which differs between sessions."""
OWN_NAME = "bentpipe-planes-"
DIGEST_DIGITS = 16
LONGEST_NAME = "0" * 8
"""As long as the name of a data plane's socket."""

GIVEN = "the data plane has a unit of its own (--planes)"
WRITTEN = "[daemon] data_plane says so"
BY_ITSELF = "`bentpipe serve` starts it, and finds it again"
NO_FILE = "no file has the configuration, for another process to read"
ONE_UNIT = "the unit of systemd that runs bentpipe is one process"
PASSED_SOCKETS = "a listener takes sockets that are passed to this process"
NO_SNAPSHOTS = '[daemon] admission = "snapshot" has no effect'
GIVEN_INSIDE = (
    '[daemon] data_plane is "inside", but bentpipe was started with --planes, beside a unit with the connections: remove '
    "the key, or go back to the unit of one process (docs/two-processes.md)"
)
FILELESS = "[daemon] data_plane: a process of its own reads the configuration from a file"


@dataclasses.dataclass(frozen=True, slots=True)
class PlaneForm:
    """What was chosen, and why."""

    folder: Path | None
    """Of the data planes' sockets; None: connections live inside the daemon."""
    why: str
    is_external: bool = False
    """Whether something else starts and ends the data plane, so that the daemon waits for it."""
    warning: str = ""
    """What the operator should know of the choice; "" if it is as it should be."""

    @property
    def where(self) -> str:
        """In words."""
        return f"connections live {'inside the daemon' if self.folder is None else 'in a process of their own'}"

    @property
    def words(self) -> str:
        """The choice and its reason in words."""
        return f"{self.where}: {self.why}"

    @property
    def fields(self) -> dict[str, str]:
        """What the log says beside `where`."""
        told = {"why": self.why, "planes": str(self.folder or ""), "warning": self.warning}
        return {name: value for name, value in told.items() if value}


def choose_form(
    config: Config,
    config_path: Path | None,
    given: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    is_service: bool | None = None,
) -> PlaneForm:
    """Decide. Changes nothing.

    `config_path` is the configuration's file, `given` the folder by the command line. `is_service`: whether systemd has
    started, or will start, the daemon; by default whether it has started this process. Raises OSError if the configuration
    contradicts how the daemon was started.
    """
    section = config.daemon
    service = sd.is_service(environment) if is_service is None else is_service
    if given is not None and section.data_plane == "inside":
        raise OSError(errno.EINVAL, GIVEN_INSIDE)
    if given is not None and config_path is not None:
        return PlaneForm(planes_folder(config, config_path, given, environment), GIVEN, is_external=True)
    if section.data_plane == "process":
        if config_path is None:
            raise OSError(errno.EINVAL, FILELESS)
        return PlaneForm(planes_folder(config, config_path, None, environment), WRITTEN, is_external=service)
    if section.data_plane == "inside":
        return PlaneForm(None, WRITTEN)
    why, warning = NO_FILE, ""
    if service:
        why = ONE_UNIT
    elif any(each.systemd is not None for each in config.listener):
        why = PASSED_SOCKETS
    elif config_path is not None and config_path.is_file():  # /dev/fd/63 of a shell can be read only once
        folder = planes_folder(config, config_path, None, environment)
        unusable = why_unusable(folder)
        if not unusable:
            return PlaneForm(folder, BY_ITSELF)
        why = f"no data plane could listen in {folder}: {unusable}"
        warning = f"{why}: give another folder by [daemon] planes"
    if section.admission == "snapshot":
        warning = "; ".join(filter(None, (warning or why, NO_SNAPSHOTS)))
    return PlaneForm(None, why, warning=warning)


def planes_folder(
    config: Config, config_path: Path, given: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Path:
    """The configured folder, or the one of the command line, or `planes` in systemd's RuntimeDirectory.

    Without any of them it is a folder of this user, whose name has a hash of the configuration's path. So a daemon finds its
    data plane again, and not another daemon's.
    """
    if config.daemon.planes is not None:
        return config.daemon.planes
    if given is not None:
        return given.absolute()
    runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        return Path(runtime) / "planes"
    which = hashlib.sha256(os.fsencode(os.path.abspath(config_path))).hexdigest()[:DIGEST_DIGITS]
    user = os.geteuid()
    return (USERS_FOLDER if user else ROOTS_FOLDER) / f"{OWN_NAME}{user}-{which}"


def remove_own(folder: Path) -> None:
    """Remove an empty folder that has no other purpose. A folder that somebody has named stays."""
    if folder.name.startswith(OWN_NAME):
        for path in (folder / "handover", folder):
            with contextlib.suppress(OSError):  # of another data plane
                path.rmdir()


def why_unusable(folder: Path) -> str:
    """Why a data plane could not listen in a folder; "" if it could, or if the attempt alone can tell. Changes nothing."""
    try:
        plane_socket_path(folder, LONGEST_NAME)
        found = folder.lstat()
    except FileNotFoundError:
        parent = next((each for each in folder.absolute().parents if each.exists()), Path("/"))
        return "" if os.access(parent, os.W_OK | os.X_OK) else f"{parent} cannot be written to"
    except OSError as exc:
        return str(exc.strerror or exc)
    if not is_private(found):
        return "it is not a folder of this user with mode 0700"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written to"
