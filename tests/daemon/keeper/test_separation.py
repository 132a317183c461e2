"""Satellites with users of their own, as root: what one can reach of the daemon, of the keeper, and of another satellite."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import trio

from beds.contracts.provider import DEADLINE_S, start, wait_state
from beds.machines.local_processes import wait_for
from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import ProviderPermanent
from bentpipe.daemon.keeper import users as users_module
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.users import UidRange, Users, delete_contents, parse_uids
from bentpipe.daemon.model import Address, MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.provider import ProcessProvider

PYTHON = "/usr/bin/python3"
"""Not this one: other users may not be able to reach it."""
ONE, TWO = MachineId("acme.one"), MachineId("acme.two")

TESTS = itertools.count()
FIRST_UID, UIDS_A_PROCESS, UIDS_A_TEST = 1_000_000, 500, 10


@pytest.fixture
def uids() -> UidRange:
    """Users of this test alone: those of another one may be ending, and other runs of these tests may be under way."""
    place = next(TESTS) * UIDS_A_TEST
    assert place < UIDS_A_PROCESS
    first = FIRST_UID + os.getpid() * UIDS_A_PROCESS + place
    return UidRange(first, first + UIDS_A_TEST - 1)


@pytest.fixture
def two_uids(uids: UidRange) -> UidRange:
    return UidRange(uids.first, uids.first + 1)


root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(PYTHON).exists(), reason=f"needs root, and {PYTHON} that other users can run"
)

SPY = """
import json, os, resource, socket, sys, time
host, port, *targets = sys.argv[1:]
def attempt(what):
    try:
        return what()
    except OSError as error:
        return error.__class__.__name__
def read(path):
    return attempt(lambda: f"read {len(open(path, 'rb').read(1))}")
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
found = {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(), "fds": len(fds),
    "environment": dict(os.environ), "umask": status["Umask"].strip(), "nnp": status["NoNewPrivs"].strip(),
    "caps": [status[name].strip() for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")],
    "rtprio": resource.getrlimit(resource.RLIMIT_RTPRIO), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "reads": {path: read(path) for path in targets if not path.isdigit()},
    "kills": {pid: attempt(lambda: os.kill(int(pid), 0)) for pid in targets if pid.isdigit()},
    "made": attempt(lambda: open(os.path.join(os.environ["TMPDIR"], "x"), "w").close())}
with socket.create_server((host, int(port))) as server:
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(json.dumps(found).encode())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Other users can pass through it, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="bentpipe-separation-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=[Isolation.CGROUP, Isolation.PROCESS_GROUP], ids=lambda each: each.name.lower())
def isolation(request: pytest.FixtureRequest) -> Isolation:
    return Isolation(request.param)


def section(*arguments: str) -> ProcessSection:
    return ProcessSection(command=(PYTHON, "-ISc", SPY, "{host}", "{port}", *arguments), stop_grace=1.0)


def place_of(folder: Path, uids: UidRange) -> KeeperPlace:
    return KeeperPlace(folder / "keeper.sock", uids=str(uids), directory=folder / "satellites")


class Bed:
    """A provider of satellites that spy."""

    def __init__(self, folder: Path, isolation: Isolation, uids: UidRange) -> None:
        self.folder = folder
        self.key, self.store = folder / "tls.key", folder / "ledger.sqlite"
        for path in (self.key, self.store):
            path.write_text("secret")
            path.chmod(0o600)
        own = [str(os.getpid())]
        processes = [f"/proc/{os.getpid()}/{name}" for name in ("environ", "mem", "maps", "fd/0")]
        reads = [str(self.key), str(self.store), str(folder / "keeper.sock"), *processes]
        other = [str(folder / "satellites" / ONE / "secret"), str(folder / "satellites" / ONE)]
        specs = {ONE: section(*reads, *own), TWO: section(*reads, *other, *own)}
        self.provider = ProcessProvider(specs, place=place_of(folder, uids), isolation=isolation, soft_files=512)

    async def told(self, machine_id: MachineId) -> dict[str, object]:
        look = await start(self.provider, machine_id)
        assert look.address is not None
        with trio.fail_after(DEADLINE_S):
            async with await trio.open_tcp_stream(look.address.host, look.address.port) as stream:
                data = b"".join([chunk async for chunk in stream])
        found: dict[str, object] = json.loads(data)
        return found


@pytest.fixture
async def bed(folder: Path, isolation: Isolation, uids: UidRange) -> AsyncIterator[Bed]:
    bed = Bed(folder, isolation, uids)
    async with trio.open_nursery() as nursery:
        await nursery.start(bed.provider.run)
        if bed.provider.isolation is not isolation:
            pytest.skip(f"no {isolation.value} here")
        yield bed
        await bed.provider.aclose()


@root_only
async def test_it_reaches_nothing_but_its_own(bed: Bed) -> None:
    one = await bed.told(ONE)
    home = bed.folder / "satellites" / ONE
    (home / "secret").write_text("of one")
    os.chown(home / "secret", home.stat().st_uid, home.stat().st_gid)
    two = await bed.told(TWO)
    for found in (one, two):
        reads, kills = found["reads"], found["kills"]
        assert isinstance(reads, dict)
        assert isinstance(kills, dict)
        refused = {"PermissionError", "OSError"}  # a socket cannot be opened at all (ENXIO)
        assert set(reads.values()) <= refused, reads
        assert set(kills.values()) == {"PermissionError"}
    assert one["uid"] != two["uid"]


@root_only
async def test_what_it_has_is_its_own(bed: Bed, uids: UidRange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the daemon's")
    found = await bed.told(ONE)
    home = bed.folder / "satellites" / ONE
    uid = home.stat().st_uid
    assert uids.first <= uid <= uids.last
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert found["uid"] == [uid] * 3
    assert found["gid"] == [uid] * 3
    assert found["groups"] in ([], [uid])
    assert found["cwd"] == str(home)
    assert found["umask"] == "0077"
    assert found["nnp"] == "1"
    assert set(found["caps"]) == {"0" * 16}  # type: ignore[call-overload]
    assert found["rtprio"] == [0, 0]
    assert found["nofile"] == 512
    assert found["fds"] == 3
    assert found["made"] is None
    environment = found["environment"]
    assert isinstance(environment, dict)
    assert environment.keys() - {"PATH", "LANG", "HOME", "TMPDIR", "LC_CTYPE"} == set()
    assert (environment["HOME"], environment["TMPDIR"]) == (str(home), str(home / "tmp"))


@root_only
async def test_its_files_stay_over_sleep_and_go_with_it_before_its_user(bed: Bed) -> None:
    await bed.told(ONE)
    home = bed.folder / "satellites" / ONE
    uid = home.stat().st_uid
    (home / "cache").write_text("kept")
    os.chown(home / "cache", uid, uid)
    await bed.provider.stop(ONE, SleepMode.STOP)
    await wait_state(bed.provider, ONE, MachineState.STOPPED)
    assert (await bed.told(ONE))["uid"] == [uid] * 3
    assert (home / "cache").read_text() == "kept"
    await bed.provider.terminate(ONE)
    await wait_state(bed.provider, ONE, MachineState.TERMINATED)
    assert not home.exists()


@root_only
async def test_what_leaves_its_session_is_still_its_own(folder: Path, isolation: Isolation, uids: UidRange) -> None:
    """A process that has left session and group is found by its user."""
    script = (
        f"setsid sleep 6543 & exec {PYTHON} -ISc "
        '"import socket,sys,time; s=socket.create_server((sys.argv[1], int(sys.argv[2]))); time.sleep(600)" "$0" "$1"'
    )
    command = ProcessSection(command=("/bin/sh", "-c", script, "{host}", "{port}"), stop_grace=1.0)
    provider = ProcessProvider({ONE: command}, place=place_of(folder, uids), isolation=isolation)

    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await start(provider, ONE)
        await wait_for(lambda: any(name == "sleep" for _, name in living_of(uids)))
        await provider.stop(ONE, SleepMode.HIBERNATE)
        assert (await provider.describe(ONE)).state is MachineState.HIBERNATED
        await start(provider, ONE)
        await provider.stop(ONE, SleepMode.STOP)
        await wait_state(provider, ONE, MachineState.STOPPED)
        assert living_of(uids) == []
        await provider.aclose()


@root_only
async def test_another_user_on_its_port_is_a_stranger(folder: Path, uids: UidRange) -> None:
    """No process of it is searched for the socket: the user of the socket tells."""
    script = 'nohup "$@" >/dev/null & exec sleep 600'
    server = "import socket,sys,time; s=socket.create_server((sys.argv[1], int(sys.argv[2]))); time.sleep(600)"
    command = ("/bin/sh", "-c", script, "sh", PYTHON, "-ISc", server, "{host}", "{port}")
    provider = ProcessProvider({ONE: ProcessSection(command=command, stop_grace=1.0)}, place=place_of(folder, uids))
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        look = await start(provider, ONE)
        assert look.address is not None
        uid = (folder / "satellites" / ONE).stat().st_uid
        assert provider.vouches_nowait(look)
        for pid, name in living_of(UidRange(uid, uid)):
            if name.startswith("python"):
                os.kill(pid, signal.SIGKILL)
        await wait_for(lambda: not is_bound(look.address))
        with socket.create_server((look.address.host, look.address.port)):
            assert not provider.vouches_nowait(look)
        await provider.aclose()


def living_of(uids: UidRange) -> list[tuple[int, str]]:
    """Processes of these users: number and name."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if uids.first <= each.uids().real <= uids.last and each.status() != psutil.STATUS_ZOMBIE:
                found.append((each.pid, each.name()))
    return found


def is_bound(address: Address | None) -> bool:
    assert address is not None
    with socket.socket() as sock:
        return sock.connect_ex((address.host, address.port)) == 0


@root_only
async def test_with_the_daemons_user_if_that_is_asked_for(folder: Path, uids: UidRange) -> None:
    spied = section().model_copy(update={"user": "daemon", "environment": {"TMPDIR": str(folder)}})
    provider = ProcessProvider({ONE: spied}, place=place_of(folder, uids))
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await start(provider, ONE)
        assert not (folder / "satellites" / ONE).exists()
        await provider.aclose()


async def test_users_that_are_not_available_are_refused_in_words(folder: Path, uids: UidRange) -> None:
    """Here because another keeper has the folder; without root because the user cannot be changed."""
    if os.geteuid() == 0:
        holder = Users(folder / "satellites", uids)
    provider = ProcessProvider({ONE: section()}, place=place_of(folder, uids))
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        with pytest.raises(ProviderPermanent, match=f"cannot have users of their own: users {uids}"):
            await provider.start(ONE)
        await provider.aclose()
    if os.geteuid() == 0:
        holder.close()


# -- the folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "1", "-", "5-", "500-600", "3000-2000", "60000-70000", "1000-4294967295", "a-b", "1000-2000-3000"]
)
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="user"):
        parse_uids(text)


def test_a_range() -> None:
    assert parse_uids("300000-300999") == UidRange(300000, 300999)


@root_only
def test_a_user_is_one_satellites_until_its_files_are_gone(folder: Path, two_uids: UidRange) -> None:
    users = Users(folder / "satellites", two_uids)
    first, uid = users.claim("a")
    assert users.claim("a") == (first, uid)
    _, other = users.claim("b")
    assert {uid, other} == {two_uids.first, two_uids.last}
    with pytest.raises(OSError, match=f"all users of {two_uids} are taken"):
        users.claim("c")
    (first / "file").touch()
    pid = users.begin_removal("a")
    assert pid is not None
    assert os.waitpid(pid, 0)[1] == 0
    users.finish_removal("a")
    assert users.claim("c")[1] == uid
    users.close()


@root_only
def test_a_user_of_a_living_process_is_not_given(folder: Path, two_uids: UidRange) -> None:
    users = Users(folder / "satellites", two_uids)
    with subprocess.Popen(["sleep", "600"], user=two_uids.first) as process:
        try:
            assert users.claim("a")[1] == two_uids.last
        finally:
            process.kill()
    users.close()


AS_THE_UNIT = (
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(
        "setpriv",
        "--reuid=65533",
        "--regid=65533",
        "--clear-groups",
        "--bounding-set=-all,+setuid,+setgid,+chown,+kill",
    ),
    *("--inh-caps=-all,+setuid,+setgid,+chown,+kill", "--ambient-caps=-all,+setuid,+setgid,+chown,+kill"),
)
"""A user with the capabilities of bentpipe-keeper.service, among processes of its own: kill(-1) reaches nobody else."""
KILLS = """
import subprocess, sys
first = int(sys.argv[1])
bystander = subprocess.Popen(["sleep", "600"])
satellite = subprocess.Popen(["sleep", "600"], user=first, group=first, extra_groups=[])
kill_all_of(first)
assert satellite.wait(60) == -signal.SIGKILL
assert bystander.poll() is None
bystander.kill()
print("the keeper lives, too")
"""


@root_only
def test_the_unit_kills_a_satellites_processes_and_no_others(two_uids: UidRange) -> None:
    """A keeper that is not root keeps its capabilities when it changes its user, unless it drops them."""
    source = Path(users_module.__file__).read_text() + KILLS
    done = subprocess.run(
        [*AS_THE_UNIT, PYTHON, "-I", "-c", source, str(two_uids.first)], capture_output=True, text=True, check=False
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no namespaces: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "the keeper lives, too\n"), done.stderr


HIDDEN = """
set -e
mount -t proc -o hidepid=invisible none /proc
exec setpriv --regid=65534 --clear-groups --bounding-set=-all,+setuid,+setgid,+chown,+kill --inh-caps=-all "$@"
"""
IN_HIDING = """
import subprocess, sys
from pathlib import Path
from bentpipe.daemon.keeper.containment import ProcessGroups
from bentpipe.daemon.keeper.users import UidRange, Users, user_of
first = int(sys.argv[2])
users = Users(Path(sys.argv[1]), UidRange(first, first + 1))
assert user_of(1) is None
with subprocess.Popen(["sleep", "600"], user=first, group=first, extra_groups=[]) as process:
    try:
        assert users.claim("a")[1] == first + 1
        ProcessGroups("asked for").contain("a", None)
        try:
            ProcessGroups("asked for").contain("a", first)
        except PermissionError as error:
            print(error.strerror)
    finally:
        process.kill()
"""


@root_only
def test_where_proc_hides_other_users_processes(folder: Path, two_uids: UidRange) -> None:
    """As under the keeper's unit. A user's processes are found nevertheless, and without a cgroup nothing is started."""
    command = [sys.executable, "-P", "-c", IN_HIDING, str(folder / "satellites"), str(two_uids.first)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", HIDDEN, "sh", *command], capture_output=True, text=True, check=False
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mount namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "ProtectProc=" in done.stdout


@root_only
@pytest.mark.parametrize("what", ["link", "file", "elsewhere"])
def test_a_folder_that_is_none_of_ours(folder: Path, two_uids: UidRange, what: str) -> None:
    users = Users(folder / "satellites", two_uids)
    path = folder / "satellites" / "a"
    if what == "link":
        path.symlink_to("/etc")
    elif what == "file":
        path.touch()
    else:
        path.mkdir()
        os.chown(path, 12345, 12345)
    with pytest.raises(OSError, match="remove"):
        users.claim("a")
    assert Path("/etc/passwd").stat().st_uid == 0
    users.close()


@root_only
def test_two_keepers_do_not_share_a_folder(folder: Path, two_uids: UidRange) -> None:
    users = Users(folder / "satellites", two_uids)
    with pytest.raises(OSError, match="another keeper"):
        Users(folder / "satellites", two_uids)
    users.close()
    Users(folder / "satellites", two_uids).close()


@root_only
def test_a_dead_keepers_processes_are_swept(folder: Path, two_uids: UidRange) -> None:
    users = Users(folder / "satellites", two_uids)
    _, uid = users.claim("a")
    with subprocess.Popen(["sleep", "600"], user=uid) as process:
        users.sweep()
        assert process.wait(20) == -signal.SIGKILL
    users.close()


def test_whatever_a_satellite_has_made_is_deleted(tmp_path: Path) -> None:
    """Deeper than any recursion, without permissions, full of links and sockets; nothing outside is touched."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "kept").touch()
    (inside / "link").symlink_to(outside)
    (inside / ".removed-0").mkdir()
    (inside / "locked").mkdir()
    (inside / "locked" / "file").touch()
    (inside / "locked").chmod(0)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(inside / "socket"))
    here = os.getcwd()
    try:
        os.chdir(inside)
        for _ in range(1500):
            os.mkdir("deep")
            os.chdir("deep")
            Path("file").touch()
        began = time.monotonic()
        delete_contents(inside)
        print(f"{time.monotonic() - began:.2f} s")
    finally:
        os.chdir(here)
    assert list(inside.iterdir()) == []
    assert (outside / "kept").exists()
