"""Gets BuildKit's programs out of a container image, by its digest, from a registry or from an OCI layout on this machine.

The OCI distribution and image specifications. Every blob is checked against its digest before anything in it is used, so the
registry and the network are not trusted. It must never take a tag, and never put anything elsewhere than into the folder of
the programs (and Earthly's debugger, which its CLI looks for at a fixed path).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Protocol

from bentpipe.daemon.image.programs.settings import DEBUGGER, SetupError, load_settings

WANTED = {"usr/bin/buildkitd", "usr/bin/buildctl", "usr/bin/buildkit-runc", "usr/bin/earth_debugger"}
WANTED_PREFIX = "usr/bin/buildkit-cni-"
MANIFEST_BYTES, LAYER_BYTES = 4 << 20, 1 << 30
TIMEOUT_S = 30.0
PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Between attempts while the network or the registry does not answer; the last one for ever."""
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
DOCKER_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class ImageSource(Protocol):
    """Where blobs come from."""

    def open(self, kind: str, digest: str) -> IO[bytes]:
        """Open a blob; `kind` is "manifests" or "blobs". Raises OSError."""
        ...


class LayoutSource:
    """An OCI image layout: blobs are files named by their digests."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def open(self, kind: str, digest: str) -> IO[bytes]:
        """Open a blob. Raises OSError."""
        return (self._folder / "blobs" / "sha256" / digest).open("rb")


class RegistrySource:
    """A repository of a registry, read without credentials."""

    def __init__(self, host: str, repository: str) -> None:
        local = host.partition(":")[0] in ("localhost", "127.0.0.1")
        self._base = f"{'http' if local else 'https'}://{DOCKER_HUB.get(host, host)}/v2/{repository}"
        self._token = ""

    def open(self, kind: str, digest: str) -> IO[bytes]:
        """Open a manifest or a blob. Raises OSError."""
        try:
            return self._get(f"{self._base}/{kind}/sha256:{digest}")
        except urllib.error.HTTPError as exc:
            challenge = exc.headers.get("WWW-Authenticate", "")
            if exc.code != 401 or not challenge.lower().startswith("bearer ") or self._token:
                raise
            self._token = self._ask_token(dict(CHALLENGE.findall(challenge)))
            return self._get(f"{self._base}/{kind}/sha256:{digest}")

    def _get(self, url: str) -> IO[bytes]:
        request = urllib.request.Request(url, headers={"Accept": ", ".join(MANIFESTS)})
        if self._token:
            # Not a plain header: urllib would send those on to where a redirect leads.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        answer: IO[bytes] = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return answer

    def _ask_token(self, challenge: dict[str, str]) -> str:
        realm = challenge.pop("realm", "")
        if not realm.startswith("https://"):
            raise SetupError(f"the registry asks for a token of {realm!r}, which is not an https address")
        with urllib.request.urlopen(f"{realm}?{urllib.parse.urlencode(challenge)}", timeout=TIMEOUT_S) as answer:
            given = json.loads(answer.read(MANIFEST_BYTES))
        return str(given.get("token") or given.get("access_token") or "")


def source_of(image: str) -> tuple[ImageSource, str]:
    """The place and the digest that an image's name stands for."""
    name, _, digest = image.partition("@sha256:")
    if name.startswith("oci:"):
        return LayoutSource(name[4:]), digest
    host, _, repository = name.partition("/")
    return RegistrySource(host, repository), digest


def _copy_checked(source: ImageSource, kind: str, digest: str, limit: int, to: IO[bytes]) -> None:
    """Copy a blob. Raises SetupError if it is too large, or not what its digest says."""
    seen, size = hashlib.sha256(), 0
    with source.open(kind, digest) as blob:
        while piece := blob.read(1 << 20):
            size += len(piece)
            if size > limit:
                raise SetupError(f"sha256:{digest} has over {limit} bytes")
            seen.update(piece)
            to.write(piece)
    if seen.hexdigest() != digest:
        raise SetupError(f"the content of sha256:{digest} has the digest sha256:{seen.hexdigest()}")
    to.seek(0)


def _read_json(source: ImageSource, digest: str) -> dict[str, object]:
    kind = "manifests"
    with tempfile.TemporaryFile() as file:
        _copy_checked(source, kind, digest, MANIFEST_BYTES, file)
        found = json.load(file)
    if not isinstance(found, dict):
        raise SetupError(f"sha256:{digest} is not a manifest")
    return found


def layers_of(source: ImageSource, digest: str, architecture: str) -> list[str]:
    """The digests of the image's layers, lowest first. Raises SetupError and OSError."""
    manifest = _read_json(source, digest)
    choices = manifest.get("manifests")
    if isinstance(choices, list):
        fitting = [
            each
            for each in choices
            if each.get("platform", {}).get("os") == "linux" and each["platform"].get("architecture") == architecture
        ]
        if not fitting:
            raise SetupError(f"the image sha256:{digest} has nothing for linux/{architecture}")
        manifest = _read_json(source, _hex(fitting[0]))
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise SetupError(f"the image sha256:{digest} has no layers")
    return [_hex(each) for each in layers]


def _hex(descriptor: object) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    match = re.fullmatch(r"sha256:([0-9a-f]{64})", digest) if isinstance(digest, str) else None
    if match is None:
        raise SetupError(f"{digest!r} is not a SHA-256 digest")
    return match[1]


def extract(source: ImageSource, layers: list[str], folder: Path) -> None:
    """Put the programs of all layers into the folder. Raises SetupError, OSError and tarfile.TarError."""
    for digest in layers:
        with tempfile.TemporaryFile(dir=folder) as file:
            _copy_checked(source, "blobs", digest, LAYER_BYTES, file)
            with tarfile.open(fileobj=file, mode="r:*") as archive:
                for member in archive:
                    name = member.name.lstrip("./")
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None or not (name in WANTED or name.startswith(WANTED_PREFIX)):
                        continue
                    place = folder / os.path.basename(name)
                    with place.open("wb") as program:
                        shutil.copyfileobj(content, program)
                    place.chmod(0o755)


def fetch(image: str, folder: Path) -> None:
    """Make the folder of the programs, all of it or nothing. Raises SetupError, OSError and tarfile.TarError."""
    machine = os.uname().machine
    source, digest = source_of(image)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        extract(source, layers_of(source, digest, MACHINES.get(machine, machine)), unfinished)
        if not (unfinished / "buildkitd").exists():
            raise SetupError(f"{image} has no usr/bin/buildkitd")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def install_debugger(programs: Path, place: Path = DEBUGGER) -> None:
    """Put Earthly's debugger where its CLI looks for it. Raises SetupError if there is none."""
    own = programs / place.name
    if own.exists() and own != place:
        unfinished = place.with_suffix(".new")
        shutil.copy(own, unfinished)
        unfinished.rename(place)
    if not place.exists():
        raise SetupError(f"there is neither {own} nor {place}: Earthly's interactive debugger would not work")


def main() -> int:
    """Fetch until it is there. Returns an exit code for what would fail again."""
    attempt = 0
    while True:
        try:
            settings = load_settings()
            folder = Path(settings.programs)
            if settings.image and not folder.exists():
                fetch(settings.image, folder)
            if settings.flavour == "earthly":
                install_debugger(folder)
            return 0
        except urllib.error.HTTPError as exc:
            temporary, words = exc.code == 429 or exc.code >= 500, f"{exc.url}: {exc}"
        except (SetupError, tarfile.TarError, ValueError) as exc:
            temporary, words = False, str(exc)
        except OSError as exc:
            temporary, words = True, str(exc)
        sys.stderr.write(f"<3>BuildKit's programs cannot be fetched{', trying again' if temporary else ''}: {words}\n")
        if not temporary:
            return 1
        time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
        attempt += 1


if __name__ == "__main__":
    sys.exit(main())
