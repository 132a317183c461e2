"""The form in which tests run a daemon: connections inside it, or in a data plane that is a process of its own.

`BENTPIPE_TESTBED_DATA_PLANE=process` has the beds serve in the second form; tests/conftest.py then registers this
module as a plugin of pytest. With `BENTPIPE_TESTBED_ADMISSION=snapshot` that form admits clients by snapshots.
"""

import contextlib
import os
import re
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from beds.ports import free_port
from bentpipe.config.load import load_config
from bentpipe.daemon.planes.bounds import HELLO_S, MESSAGE_BYTES
from bentpipe.daemon.planes.codec import decode_message
from bentpipe.daemon.planes.records import HelloRecord
from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.planes.table import Plane
from bentpipe.daemon.private_socket import peer_of
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.edge_host import DATA_PLANE

ADMISSION = os.environ.get("BENTPIPE_TESTBED_ADMISSION", "asked")
"""In the second form: as in the configuration."""
LISTENER = re.compile(r'(?<=\[\[listener\]\]\n)address = "127\.0\.0\.1:0"')

CLIENTS_TAKE_NONE = (
    "in the second form clients take no descriptor of the daemon's; test_openings.py has those of the data plane"
)
ONLY_INSIDE = {
    "test_descriptors.py::test_a_crowd_takes_no_descriptor_that_the_daemon_needs": CLIENTS_TAKE_NONE,
    "test_descriptors.py::test_old_strangers_go_when_there_is_no_descriptor_for_a_client": CLIENTS_TAKE_NONE,
    "test_descriptors.py::test_a_limit_that_is_lowered_under_the_daemon_ends_nothing": CLIENTS_TAKE_NONE,
    "test_descriptors.py::test_a_daemon_without_a_descriptor_ends_when_it_is_told_to": CLIENTS_TAKE_NONE,
}
"""Tests that are about connections inside the daemon, with the reason: FILE, or FILE::TEST."""

ONLY_ASKED = {
    "test_awake.py::test_calls_to_an_awake_satellite": "it counts dials that the control plane asks for",
    "test_settings_fresh.py::test_a_server_name_says_whose_settings_are_announced": (
        "data planes announce the least of all satellites' settings to every client"
    ),
    "test_greeting_forms.py::test_refusals": (
        "the data plane takes a long first flight in pieces: whether SETTINGS come before a refusal depends on the reader"
    ),
}
"""The same for tests of clients that the control plane admits one by one."""

_folders: set[Path] = set()
"""Where data planes of this test's daemons may be."""


def in_form(text: str, folder: Path) -> str:
    """A configuration in the form that is tested. The data plane's sockets are in `folder`, which must be one host's.

    A text that is in that form already stays as it is.
    """
    if DATA_PLANE != "inside":
        _folders.add(folder / "planes")
    if "data_plane = " in text:
        return text
    keys = f'[daemon]\ndata_plane = "{DATA_PLANE}"\n'
    if DATA_PLANE != "inside":
        text = with_ports(text)
        keys += f'admission = "{ADMISSION}"\nplanes = "{folder / "planes"}"\n'
    return text.replace("[daemon]\n", keys, 1) if "[daemon]\n" in text else keys + text


def with_ports(text: str) -> str:
    """Listeners of a configuration in the form that is tested: a daemon does not see which port its data plane gets."""
    return text if DATA_PLANE == "inside" else LISTENER.sub(lambda _: f'address = "127.0.0.1:{free_port()}"', text)


def write_in_form(path: Path, text: str, folder: Path) -> None:
    """Write a configuration as `in_form` has it. One that is written again keeps its ports: its data plane may live."""
    if DATA_PLANE != "inside" and path.exists():
        sections = load_config(path, check_files=False).listener
        known = iter([each.address[1] for each in sections if each.address is not None])
        text = LISTENER.sub(lambda _: f'address = "127.0.0.1:{next(known, None) or free_port()}"', text)
    path.write_text(in_form(text, folder))


def listener_address() -> str:
    """An address for a listener whose configuration is written more than once."""
    return f"127.0.0.1:{0 if DATA_PLANE == 'inside' else free_port()}"


def first_port_of(path: Path) -> int:
    """The port of the first listener of a file that `in_form` has made for the second form."""
    address = load_config(path, check_files=False).listener[0].address
    assert address is not None
    return address[1]


async def serve_file(path: Path, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve a file's configuration in this process until its `drain` is set; `task_status` gets the daemon."""
    config = load_config(path)
    is_inside = DATA_PLANE == "inside" and config.daemon.data_plane != "process"
    # Without a file no other process can have the connections.
    await serve(config, config_path=None if is_inside else path, task_status=task_status)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what says nothing about the second form."""
    left_out = ONLY_INSIDE | (ONLY_ASKED if ADMISSION == "snapshot" else {})
    for item in items:
        for which, reason in left_out.items():
            file, _, test = which.partition("::")
            if item.path.name == file and item.name.partition("[")[0] in (test, test or item.name.partition("[")[0]):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def no_plane_left() -> Iterator[None]:
    """End the data planes that a test has left: a daemon that is cancelled or killed leaves its own.

    Those of a daemon that serves further tests stay.
    """
    yield
    for folder in list(_folders):
        end_planes_in(folder)
        if not plane_sockets(folder):
            _folders.discard(folder)


def end_planes_in(folder: Path) -> None:
    """Kill the data planes whose sockets are in a folder, and that no control plane has."""
    for path in plane_sockets(folder):
        with contextlib.suppress(OSError), connect_private(path) as sock:
            if not _is_held(sock):
                os.kill(peer_of(sock).pid, signal.SIGKILL)
                path.unlink(missing_ok=True)


def _is_held(sock: socket.socket) -> bool:
    """Whether a control plane sits and lives, as a data plane says in its HELLO. One of this process has been cancelled."""
    if not select.select([sock], [], [], HELLO_S)[0]:
        return False
    _, records = decode_message(sock.recv(MESSAGE_BYTES + 1), Plane.DATA)
    holders = [record.holder[0] for record in records if isinstance(record, HelloRecord) and record.holder]
    return any(pid != os.getpid() and Path(f"/proc/{pid}").exists() for pid in holders)
