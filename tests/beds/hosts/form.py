"""The form in which tests run a daemon: connections inside it, or in a data plane that is a process of its own.

`BENTPIPE_TESTBED_DATA_PLANE=process` has the beds serve in the second form; tests/conftest.py then registers this
module as a plugin of pytest.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from beds.ports import free_port
from bentpipe.config.load import load_config
from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.private_socket import peer_of
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.edge_host import DATA_PLANE

LISTENER = re.compile(r'(?<=\[\[listener\]\]\n)address = "127\.0\.0\.1:0"')

_folders: set[Path] = set()
"""Where data planes of this test's daemons may be."""


def in_form(text: str, folder: Path) -> str:
    """A configuration in the form that is tested. The data plane's sockets are in `folder`, which must be one host's."""
    if DATA_PLANE == "inside":
        return text
    _folders.add(folder / "planes")
    # The daemon does not see which port the data plane gets.
    text = LISTENER.sub(lambda _: f'address = "127.0.0.1:{free_port()}"', text)
    keys = f'[daemon]\ndata_plane = "{DATA_PLANE}"\nplanes = "{folder / "planes"}"\n'
    return text.replace("[daemon]\n", keys, 1) if "[daemon]\n" in text else keys + text


async def serve_file(path: Path, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve a file's configuration in this process until its `drain` is set; `task_status` gets the daemon."""
    await serve(load_config(path), config_path=path, task_status=task_status)


@pytest.fixture(autouse=True)
def no_plane_left() -> Iterator[None]:
    """End the data planes that a test has left: a daemon that is cancelled or killed leaves its own."""
    yield
    while _folders:
        end_planes_in(_folders.pop())


def end_planes_in(folder: Path) -> None:
    """Kill the data planes whose sockets are in a folder."""
    for path in plane_sockets(folder):
        with contextlib.suppress(OSError), connect_private(path) as sock:
            os.kill(peer_of(sock).pid, signal.SIGKILL)
