"""The cache's file system, made in a mount namespace of its own, in which the test's folders are the machine's."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.machines.rendered import machines_of_the_sample, written
from bentpipe.daemon.image.programs import cache as subject
from bentpipe.daemon.image.programs.settings import SatelliteSettings

PROGRAMS = "usr/local/lib/bentpipe"
SIZE = 320 << 20
"""XFS takes no less than 300 MiB."""
SCRIPT = """set -e
mount --make-rprivate /
mount --bind {root}/var-lib /var/lib
mount --bind {root}/run /run
mount --bind {root}/etc /etc
prepare() {{ PYTHONPATH={root}/{programs} /usr/bin/python3 -sS -m {module}; }}
{commands}
"""
MODULE = subject.__name__


def can_mount() -> bool:
    if os.geteuid() != 0 or any(shutil.which(each) is None for each in ("losetup", "mkfs.ext4", "unshare", "blkid")):
        return False
    done = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    return done.returncode == 0 and Path(done.stdout.decode().strip()).exists()


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs root and loop devices")


class CacheMachine:
    """A machine's folders."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = written(machines_of_the_sample()[0].image(issued=False), root)
        for name in ("var-lib", "run"):
            (root / name).mkdir()
        self.image = root / "var-lib/bentpipe/cache.img"
        self.image.parent.mkdir()
        settings = root / "etc/bentpipe/satellite.json"
        changed = {"cache_device": "", "cache_file_bytes": SIZE, "cache_filesystem": kind}
        settings.write_text(json.dumps(json.loads(settings.read_text()) | changed))

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Run a shell's commands on the machine; `prepare` is the program."""
        text = SCRIPT.format(root=self.root, programs=PROGRAMS, module=MODULE, commands=commands)
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", text], capture_output=True, text=True, timeout=60, check=False
        )

    def detach(self) -> None:
        found = subprocess.run(
            ["losetup", "--noheadings", "--output", "NAME", "--associated", str(self.image)],
            capture_output=True,
            text=True,
            check=False,
        )
        for device in found.stdout.split():
            subprocess.run(["losetup", "--detach", device], check=False)


@pytest.fixture(params=["ext4", "xfs"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheMachine]:
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"mkfs.{request.param} is not installed")
    made = CacheMachine(tmp_path, request.param)
    with contextlib.ExitStack() as stack:
        stack.callback(made.detach)
        yield made


def test_a_blank_cache_is_made_once_and_then_kept(machine: CacheMachine) -> None:
    done = machine.run(
        """prepare
        echo layer > /var/lib/buildkit/runc-overlayfs/snapshots/a
        echo database > /var/lib/buildkit/runc-overlayfs/metadata_v2.db
        prepare
        cat /var/lib/bentpipe/cache/snapshots/a /var/lib/buildkit/runc-overlayfs/metadata_v2.db
        stat --file-system --format=%b*%S /var/lib/bentpipe/cache
        cat /run/bentpipe/buildkitd.toml"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was blank") == 1
    first, second, size, *configuration = done.stdout.splitlines()
    assert (first, second) == ("layer", "database")
    blocks, _, block = size.partition("*")
    keep = int(blocks) * int(block) * 60 // 100
    assert f'maxUsedSpace = "{keep}"' in configuration
    assert not any("@" in line for line in configuration)


def test_a_cache_that_is_full_leaves_the_databases_room(machine: CacheMachine) -> None:
    done = machine.run(
        """prepare
        cd /var/lib/buildkit/runc-overlayfs
        cat /dev/zero > content/full 2>/dev/null || echo full
        i=0; while [ $i -lt 100 ]; do i=$((i+1)); cp /proc/cmdline snapshots/$i || break; done 2>/dev/null
        echo record > containerdmeta.db
        cat containerdmeta.db"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["full", "record"]


def test_databases_without_their_cache_are_emptied(machine: CacheMachine) -> None:
    """A new volume in place of the old one: the databases name snapshots that it does not have."""
    done = machine.run(
        """prepare
        echo old > /var/lib/buildkit/runc-overlayfs/metadata_v2.db
        cd /var/lib/buildkit/runc-overlayfs; umount snapshots content /var/lib/bentpipe/cache; cd /
        losetup --detach $(losetup --noheadings --output NAME --associated /var/lib/bentpipe/cache.img)
        rm /var/lib/bentpipe/cache.img
        prepare
        ls /var/lib/buildkit/runc-overlayfs"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was blank") == 2
    assert done.stdout.split() == ["content", "snapshots"]


def test_what_somebody_else_has_made_is_left_alone(machine: CacheMachine) -> None:
    machine.image.touch()
    os.truncate(machine.image, SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-L", "photographs", str(machine.image)], check=True)
    before = subprocess.run(["sha256sum", str(machine.image)], capture_output=True, check=True).stdout
    done = machine.run("prepare")
    assert done.returncode == 1
    assert "left alone" in done.stderr
    assert "wipefs" in done.stderr
    assert subprocess.run(["sha256sum", str(machine.image)], capture_output=True, check=True).stdout == before


def test_the_sizes_follow_the_cache() -> None:
    contents = {each.path: each.content for each in machines_of_the_sample()[0].image(issued=False).common}
    settings = SatelliteSettings(**json.loads(contents["/etc/bentpipe/satellite.json"]))
    text = subject.configuration(contents["/etc/bentpipe/buildkitd.toml"], settings, 1000)
    assert text.count('maxUsedSpace = "600"') == 2
    assert text.count('maxUsedSpace = "100"') == 1
