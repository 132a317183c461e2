"""Builds the peers that are not Python's, once, into build/peers; whoever needs one that cannot be built is told why.

`python -P builds.py` builds all of them, so that `make test` does not do it within a test.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "peers"
BUILD_DEADLINE_S = 400.0


class Missing(Exception):
    """A peer cannot be had here; `str()` says why."""


def _run(command: list[str], folder: Path, **environment: str) -> None:
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_DEADLINE_S,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as exc:
        raise Missing(f"{command[0]} took over {BUILD_DEADLINE_S:g} s") from exc
    except subprocess.CalledProcessError as exc:
        raise Missing(f"{' '.join(command[:2])} failed: {exc.stderr.strip()[-300:]}") from exc


def _stamped(name: str, sources: list[Path]) -> tuple[Path, bool]:
    """The output's folder, named for the sources' hash, and whether it is there already."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()[:16]
    folder = OUT / f"{name}-{digest}"
    return folder, (folder / "done").exists()


def program(name: str) -> str:
    """Find an installed program. Raises Missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/go/bin")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


@functools.cache
def go_peer() -> str:
    """The Go program of tests/peers/go. Raises Missing."""
    go = program("go")
    sources = [*(HERE / "go").glob("*.go"), HERE / "go" / "go.mod", HERE / "go" / "go.sum"]
    folder, done = _stamped("go", sources)
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        _run([go, "build", "-mod=readonly", "-o", str(folder / "peer"), "."], HERE / "go", GOTOOLCHAIN="local")
        (folder / "done").touch()
    return str(folder / "peer")


@functools.cache
def js_client() -> tuple[str, str]:
    """Node and the client of tests/peers/js with its packages installed. Raises Missing."""
    node, npm = program("node"), program("npm")
    sources = [HERE / "js" / name for name in ("client.js", "package.json", "package-lock.json")]
    folder, done = _stamped("js", sources)
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(source, folder)
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        (folder / "done").touch()
    return node, str(folder / "client.js")


def main() -> int:
    """Build everything, and say what there is."""
    for name, build in (("go", go_peer), ("js", js_client)):
        try:
            build()
        except Missing as exc:
            sys.stdout.write(f"peer {name}: its tests are skipped: {exc}\n")
        else:
            sys.stdout.write(f"peer {name}: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
