"""BuildKit's programs out of an image by its digest: from a registry's server, and from a layout in a folder."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.machines.rendered import machines_of_the_sample
from bentpipe.daemon.image.programs import fetch as subject
from bentpipe.daemon.image.programs.fetch import RegistrySource, fetch, install_debugger, source_of
from bentpipe.daemon.image.programs.settings import SETTINGS, SatelliteSettings, SetupError

ARCHITECTURE = subject.MACHINES.get(os.uname().machine, "amd64")
PROGRAMS = {"usr/bin/buildkitd": b"daemon", "usr/bin/buildctl": b"client", "usr/bin/earth_debugger": b"debugger"}


@dataclasses.dataclass
class Blobs:
    """An image's blobs by their digests, and its own digest."""

    found: dict[str, bytes] = dataclasses.field(default_factory=dict)
    digest: str = ""

    def add(self, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        self.found[digest] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}


def layer(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return gzip.compress(buffer.getvalue(), mtime=0)


def image_of(*layers: bytes, architecture: str = ARCHITECTURE) -> Blobs:
    """An image index with one image for the machine, and one for another."""
    blobs = Blobs()
    manifest = {"layers": [blobs.add(each) for each in layers]}
    mine = {**blobs.add(json.dumps(manifest).encode()), "platform": {"os": "linux", "architecture": architecture}}
    other = {**blobs.add(b'{"layers": []}'), "platform": {"os": "linux", "architecture": "riscv64"}}
    index = blobs.add(json.dumps({"manifests": [other, mine]}).encode())
    blobs.digest = str(index["digest"]).removeprefix("sha256:")
    return blobs


@contextlib.contextmanager
def registry(blobs: Blobs, failures: list[int] | None = None) -> Iterator[str]:
    """A registry with the image; yields the image's name. The first answers are those errors."""
    left = failures if failures is not None else []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            digest = self.path.rpartition("sha256:")[2]
            code = left.pop(0) if left else 200 if digest in blobs.found else 404
            self.send_response(code)
            self.end_headers()
            if code == 200:
                self.wfile.write(blobs.found[digest])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}/moby/buildkit@sha256:{blobs.digest}"
        finally:
            server.shutdown()
            thread.join()


def test_the_programs_of_all_layers_are_there_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    old = layer({"usr/bin/buildkitd": b"older", "etc/passwd": b"x", "./usr/bin/buildkit-cni-bridge": b"cni"})
    new = layer(PROGRAMS, links={"usr/bin/buildkit-runc": "/etc/shadow"})
    with registry(image_of(old, new)) as name:
        fetch(name, folder)
    found = {each.name: each.read_bytes() for each in folder.iterdir()}
    assert found == {
        "buildkitd": b"daemon",
        "buildctl": b"client",
        "earth_debugger": b"debugger",
        "buildkit-cni-bridge": b"cni",
    }
    assert all(each.stat().st_mode & 0o777 == 0o755 for each in folder.iterdir())
    assert [each.name for each in tmp_path.iterdir()] == ["programs"]


def test_a_layout_on_the_machine_is_the_same(tmp_path: Path) -> None:
    blobs = image_of(layer(PROGRAMS))
    place = tmp_path / "layout" / "blobs" / "sha256"
    place.mkdir(parents=True)
    for digest, data in blobs.found.items():
        (place / digest).write_bytes(data)
    fetch(f"oci:{tmp_path}/layout@sha256:{blobs.digest}", tmp_path / "programs")
    assert (tmp_path / "programs" / "buildkitd").read_bytes() == b"daemon"


def _spoil(blobs: Blobs) -> None:
    [digest] = [each for each, data in blobs.found.items() if data[:2] == b"\x1f\x8b"]
    blobs.found[digest] = layer(PROGRAMS | {"usr/bin/buildkitd": b"evil"})


@pytest.mark.parametrize("which", ["layer", "index"])
def test_what_is_not_as_its_digest_says_is_not_used(which: str, tmp_path: Path) -> None:
    blobs = image_of(layer(PROGRAMS))
    if which == "layer":
        _spoil(blobs)
    else:
        other = image_of(layer({"usr/bin/buildkitd": b"evil"}))
        blobs.found |= {**other.found, blobs.digest: other.found[other.digest]}
    with registry(blobs) as name, pytest.raises(SetupError, match="has the digest sha256:"):
        fetch(name, tmp_path / "programs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("blobs", "words"),
    [
        (image_of(layer({"etc/passwd": b""})), "has no usr/bin/buildkitd"),
        (image_of(layer(PROGRAMS), architecture="s390x"), "nothing for linux/"),
        (image_of(), "has no layers"),
    ],
)
def test_an_image_that_has_not_what_is_needed_leaves_nothing(blobs: Blobs, words: str, tmp_path: Path) -> None:
    with registry(blobs) as name, pytest.raises(SetupError, match=words):
        fetch(name, tmp_path / "programs")
    assert list(tmp_path.iterdir()) == []


def test_a_blob_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LAYER_BYTES", 100)
    blobs = image_of(layer({"usr/bin/buildkitd": bytes(range(256)) * 9}))
    with registry(blobs) as name, pytest.raises(SetupError, match="over 100 bytes"):
        fetch(name, tmp_path / "programs")
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_never_named_by_a_tag() -> None:
    source, digest = source_of("docker.io/moby/buildkit@sha256:" + "a" * 64)
    assert digest == "a" * 64
    assert vars(source)["_base"] == "https://registry-1.docker.io/v2/moby/buildkit"


def test_a_token_is_asked_for_at_an_https_address_only() -> None:
    with pytest.raises(SetupError, match="not an https address"):
        RegistrySource("docker.io", "moby/buildkit")._ask_token({"realm": "http://evil.example/token"})


@pytest.fixture
def use_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Says which image main() shall fetch; it waits no time between its attempts."""
    contents = {each.path: each.content for each in machines_of_the_sample()[0].image(issued=False).common}
    settings = SatelliteSettings(**json.loads(contents[str(SETTINGS)]))
    monkeypatch.setattr(subject, "PAUSES_S", (0,))

    def use(image: str) -> None:
        told = dataclasses.replace(settings, image=image, programs=str(tmp_path / "programs"))
        monkeypatch.setattr(subject, "load_settings", lambda: told)

    return use


def test_it_tries_until_the_registry_answers(
    use_image: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with registry(image_of(layer(PROGRAMS)), [503, 429]) as name:
        use_image(name)
        assert subject.main() == 0
        said = capfd.readouterr().err
        assert said.count("trying again") == 2
        (tmp_path / "programs" / "buildkitd").write_bytes(b"kept")
        assert subject.main() == 0
    assert (tmp_path / "programs" / "buildkitd").read_bytes() == b"kept", "what is there is not fetched again"


def test_it_ends_if_trying_again_is_of_no_use(
    use_image: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with registry(Blobs(digest="b" * 64)) as name:
        use_image(name)
        assert subject.main() == 1
    assert "404" in capfd.readouterr().err


def test_earthlys_debugger_is_where_its_cli_looks_for_it(tmp_path: Path) -> None:
    place = tmp_path / "bin" / "earth_debugger"
    place.parent.mkdir()
    with pytest.raises(SetupError, match="debugger"):
        install_debugger(tmp_path / "programs", place)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "earth_debugger").write_bytes(b"debugger")
    install_debugger(tmp_path / "programs", place)
    assert place.read_bytes() == b"debugger"
