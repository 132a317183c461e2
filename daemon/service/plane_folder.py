"""Where the control sockets of a configuration's data planes lie."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bentpipe.config.model import Config

FOLDER_NAME = "planes"


def planes_folder(config: Config, config_path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The configured folder, or `planes` in systemd's RuntimeDirectory.

    Without either, as in a shell, it is a folder in the directory for temporary files. Its name has the user and a hash of
    the configuration's path, so that a daemon finds its data plane again, and not another daemon's.
    """
    if config.daemon.planes is not None:
        return config.daemon.planes
    runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        return Path(runtime) / FOLDER_NAME
    which = hashlib.sha256(os.fsencode(config_path.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bentpipe-{os.geteuid()}-{which}" / FOLDER_NAME
