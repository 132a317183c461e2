"""Where the keeper is, and how it is started if the daemon starts it. Pure, except for the folder of its socket."""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

FOLDER_MODE = 0o700
ROOTS_FOLDER = Path("/run/bentpipe")
DIGEST_DIGITS = 24


@dataclasses.dataclass(frozen=True, slots=True)
class KeeperPlace:
    """How a provider comes to its keeper."""

    socket: Path | None = None
    """None: a keeper that no later daemon finds. It ends with the provider, however that ends."""
    is_external: bool = False
    """Something else starts and ends it (systemd). The satellites are left to it when the daemon ends."""
    uids: str = ""
    """FIRST-LAST: users for satellites. Empty: satellites run as the daemon's user."""
    directory: Path = Path("/nonexistent")
    """For satellites' private folders; used with `uids`."""
    outlive_s: float = 0.0
    """How long the keeper and its satellites live without a daemon."""

    def arguments(self, socket: Path, isolation: str | None) -> list[str]:
        """What the keeper's program is started with."""
        found = [f"socket={socket}", f"outlive={self.outlive_s if self.socket else 0.0}", "detached=yes"]
        if self.uids:
            found += [f"uids={self.uids}", f"directory={self.directory}"]
        if isolation is not None:
            found.append(f"isolation={isolation}")
        return found


def keeper_socket_of(config_path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The socket of the keeper of the daemon that runs with this configuration file: the same for each of its daemons.

    Makes its folder, which only this user may enter. Raises OSError.
    """
    # systemd.exec(5): a list of folders, ours has one.
    runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        folder = Path(runtime)
    elif os.geteuid() == 0:
        folder = ROOTS_FOLDER
    else:
        own = environment.get("XDG_RUNTIME_DIR")
        folder = Path(own) / "bentpipe" if own else Path(f"/tmp/bentpipe-{os.geteuid()}")
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise PermissionError(
            13, f"{folder} belongs to user {found.st_uid}: no keeper of local satellites can listen there"
        )
    digest = hashlib.sha256(os.fsencode(config_path.resolve())).hexdigest()[:DIGEST_DIGITS]
    return folder / f"keeper-{digest}.sock"
