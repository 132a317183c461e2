"""The Debian package of this tree, built once for each suite and state of the sources, and another version of the same."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from beds.booted.machine import CLEAN
from beds.booted.root import booted_root
from beds.guest.image import new_folder
from beds.peers.builds import OUT, ROOT, Missing

BUILD_DEADLINE_S = 1500.0
"""A first build installs Debian with a compiler. On a machine with a load of 20 it took eight minutes."""
SOURCES = (":!tests", ":!bench", ":!.ci/hooks")


def _tree_digest() -> str:
    """Of what `make deb` copies into its build."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", ".", *SOURCES]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        path = ROOT / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b"gone"))
    return digest.hexdigest()[:16]


@functools.cache
def built_package(suite: str) -> Path:
    """Build the package for a suite, or find it. Raises Missing, with the build's last words."""
    folder = OUT / f"deb-{suite}-{_tree_digest()}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            done = subprocess.run(
                ["bash", ".ci/deb"],
                cwd=ROOT,
                env={**os.environ, "DEB_SUITES": suite, "DEB_OUT": str(unfinished)},
                capture_output=True,
                text=True,
                timeout=BUILD_DEADLINE_S,
                check=False,
            )
            if done.returncode != 0:
                raise Missing(f"no package for {suite}: {(done.stdout + done.stderr)[-1500:]}")
    (package,) = folder.glob("bentpipe_*.deb")
    return package


@functools.cache
def installed_root(suite: str) -> Path:
    """A suite's root in which the package is installed, made once for each state of the sources. Raises Missing."""
    base, package = booted_root(suite), built_package(suite)
    folder = package.parent / f"installed-on-{base.parent.name}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            root = unfinished / "root"
            subprocess.run(["cp", "--archive", "--reflink=auto", str(base), str(root)], check=True)
            shutil.copy(package, root / "root/bentpipe.deb")
            command = [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"),
                *("chroot", str(root), *CLEAN),
                *("sh", "-euc", "dpkg -i /root/bentpipe.deb; rm /root/bentpipe.deb"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_DEADLINE_S)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "root"


def next_version(package: Path, folder: Path, changed_module: str = "") -> Path:
    """The same package with a higher version, in `folder`. `changed_module`, a path below `bentpipe/`, gets another text."""

    def change(tree: Path) -> None:
        if changed_module:
            (module,) = tree.glob(f"usr/lib/bentpipe/lib/*/site-packages/bentpipe/{changed_module}")
            module.write_text(module.read_text() + "\n# the next version\n")

    return _repacked(package, folder / f"{package.stem}-next.deb", "+next+deb", change)


def former_package(package: Path, folder: Path) -> Path:
    """The same package with a lower version, in `folder`, whose own unit is the one of one process, as it used to be."""

    def change(tree: Path) -> None:
        (unit,) = tree.glob("**/lib/systemd/system/bentpipe.service")
        share = tree / "usr/share/bentpipe/systemd"
        (share / "process/bentpipe.service").unlink()
        shutil.move(unit, share / "process/bentpipe.service")
        shutil.move(share / "one-process/bentpipe.service", unit)

    return _repacked(package, folder / f"{package.stem}-former.deb", "~former+deb", change)


def _repacked(package: Path, target: Path, version: str, change: Callable[[Path], None]) -> Path:
    """`version` stands in the place of "+deb" in the package's own."""
    with tempfile.TemporaryDirectory(dir=target.parent) as unpacked:
        tree = Path(unpacked) / "tree"
        subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
        control = tree / "DEBIAN/control"
        lines = control.read_text().splitlines(keepends=True)
        changed = [line.replace("+deb", version) if line.startswith("Version:") else line for line in lines]
        assert changed != lines
        control.write_text("".join(changed))
        change(tree)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target], check=True)
    return target
