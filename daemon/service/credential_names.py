"""Credentials of systemd by the names that the operator gave them, wherever their files are at the moment.

systemd puts the files of the start into a folder of the service (systemd.exec(5)). Newer ones are in memory, and their paths
are numbers of descriptors, which differ from one reload to the next.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from bentpipe.config.load import CREDENTIAL_PREFIX


def name_credentials(text: str, newer: Mapping[str, Path]) -> str:
    """A text in which `credential:NAME` stands for each credential's file. `newer` are those in memory, by name."""
    for name, path in newer.items():
        # /proc/self/fd/2 is the beginning of /proc/self/fd/21.
        shown = f"{CREDENTIAL_PREFIX}{name}".replace("\\", r"\\")
        text = re.sub(rf"{re.escape(str(path))}(?![0-9])", shown, text)
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return text.replace(f"{folder.rstrip('/')}/", CREDENTIAL_PREFIX) if folder else text
