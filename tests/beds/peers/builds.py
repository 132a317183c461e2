"""Builds the peers that are not Python's, once, into build/peers; a test that needs one that cannot be built is told why.

`python -P builds.py` builds all of them, so that `make test` does not do it within a test.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "tests" / "peers"
OUT = ROOT / "build" / "peers"
BUILD_DEADLINE_S = 1200.0
"""BuildKit is a thousand packages of Go, some minutes on two cores with nothing in Go's own cache."""


class Missing(Exception):
    """A peer is not available here; `str()` says why."""


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
    """The output's folder, named for the hash of the sources and of this recipe, and whether it is there already."""
    inputs = [Path(__file__), *sorted(sources)]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in inputs)).hexdigest()[:16]
    folder = OUT / f"{name}-{digest}"
    return folder, (folder / "done").exists()


def program(name: str) -> str:
    """Find an installed program. Raises Missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/go/bin")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _go_build(name: str, *packages: str) -> Path:
    """Build packages of tests/peers/NAME, whose go.mod and go.sum pin them. Returns the output's folder; raises Missing."""
    go = program("go")
    source = SOURCES / name
    folder, done = _stamped(name, [*source.rglob("*.go"), source / "go.mod", source / "go.sum"])
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        _run(
            [go, "build", "-mod=readonly", "-o", f"{folder}/", *packages], source, GOTOOLCHAIN="local", CGO_ENABLED="0"
        )
        (folder / "done").touch()
    return folder


@functools.cache
def go_peer() -> str:
    """The Go program of tests/peers/go. Raises Missing."""
    return str(_go_build("go", ".") / "peers")


@functools.cache
def buildx() -> str:
    """docker buildx, which needs no Docker for its driver `remote`. Raises Missing."""
    return str(_go_build("buildx", "github.com/docker/buildx/cmd/buildx") / "buildx")


@functools.cache
def grpcurl() -> str:
    """fullstorydev/grpcurl, which knows a service by server reflection alone. Raises Missing."""
    return str(_go_build("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl") / "grpcurl")


@functools.cache
def h2spec() -> str:
    """The conformance tests of summerwind/h2spec. Raises Missing."""
    return str(_go_build("h2spec", "github.com/summerwind/h2spec/cmd/h2spec") / "h2spec")


@dataclasses.dataclass(frozen=True, slots=True)
class BuildKit:
    """BuildKit's two programs, what runs its containers, a static program for images that have nothing else, and a client

    that names its satellite and its session in metadata.
    """

    buildkitd: str
    buildctl: str
    runc: str
    step: str
    satbuild: str


@functools.cache
def buildkit() -> BuildKit:
    """BuildKit as its satellites run it. Raises Missing, also where it could not run a container."""
    runc, _ = program("runc"), program("unshare")
    if os.geteuid() != 0:
        raise Missing("buildkitd with runc needs root")
    names = "github.com/moby/buildkit/cmd/buildkitd", "github.com/moby/buildkit/cmd/buildctl"
    folder = _go_build("buildkit", *names, "./step", "./satbuild")
    _try_container(runc, folder / "step")
    buildkitd, buildctl, step, satbuild = (str(folder / n) for n in ("buildkitd", "buildctl", "step", "satbuild"))
    return BuildKit(buildkitd, buildctl, runc, step, satbuild)


def _try_container(runc: str, step: Path) -> None:
    """Run `step` as BuildKit would: not every root may make namespaces and cgroups. Raises Missing."""
    with tempfile.TemporaryDirectory(prefix="bentpipe-runc-") as name:
        bundle = Path(name)
        (bundle / "rootfs").mkdir()
        shutil.copy(step, bundle / "rootfs")
        _run([runc, "spec"], bundle)
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"] |= {"args": ["/step", "silence", "0"], "terminal": False}
        (bundle / "config.json").write_text(json.dumps(spec))
        _run([runc, "--root", str(bundle / "state"), "run", bundle.name], bundle)


@functools.cache
def js_client() -> tuple[str, str]:
    """Node and the client of tests/peers/js with its packages installed. Raises Missing."""
    node, npm = program("node"), program("npm")
    sources = [SOURCES / "js" / name for name in ("client.js", "package.json", "package-lock.json")]
    folder, done = _stamped("js", sources)
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(source, folder)
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        (folder / "done").touch()
    return node, str(folder / "client.js")


@functools.cache
def tonic_client() -> str:
    """The Rust program of tests/peers/rust. Raises Missing."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        raise Missing("cargo is not installed")
    source = SOURCES / "rust"
    folder, done = _stamped("rust", [source / "Cargo.toml", source / "Cargo.lock", source / "src" / "main.rs"])
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder of the intermediate results is everybody's: another lock file need not build all of it again.
        target = OUT / "rust-target"
        _run([cargo, "build", "--release", "--locked", "--quiet", "--target-dir", str(target)], source)
        shutil.copy(target / "release" / "client", folder)
        (folder / "done").touch()
    return str(folder / "client")


@functools.cache
def java_client() -> tuple[str, ...]:
    """The command line of the Java program of tests/peers/java, its packages beside it. Raises Missing."""
    java, maven = program("java"), program("mvn")
    source = SOURCES / "java"
    code = source / "src" / "main" / "java" / "Client.java"
    folder, done = _stamped("java", [source / "pom.xml", code])
    if not done:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _run([maven, "--batch-mode", "--quiet", "compile", "dependency:copy-dependencies"], folder)
        (folder / "done").touch()
    # One of many on a small machine: little memory, and no time spent on optimizing.
    options = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    return java, *options, "-cp", f"{folder}/target/classes:{folder}/target/dependency/*", "Client"


CLIENTS = {"grpc-go": go_peer, "grpc-js": js_client, "tonic": tonic_client, "grpc-java": java_client}
"""The clients of the matrix that are built, by their names there."""
OTHERS = {"h2spec": h2spec, "grpcurl": grpcurl, "buildkit": buildkit, "buildx": buildx}


def main() -> int:
    """Build everything, and say what there is."""
    for name, build in (CLIENTS | OTHERS).items():
        try:
            build()
        except Missing as exc:
            sys.stdout.write(f"peer {name}: its tests are skipped: {exc}\n")
        else:
            sys.stdout.write(f"peer {name}: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
