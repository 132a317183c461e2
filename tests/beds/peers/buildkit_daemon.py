"""A buildkitd by itself, on a Unix socket and on a small file system, as the responder finds it on a satellite."""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from beds.peers.buildkit_host import BUILDKITD, CONTAINED, POLL_S, Build
from beds.peers.builds import BuildKit

START_DEADLINE_S = 60.0


class BuildKitDaemon:
    """`with BuildKitDaemon(...) as daemon:` runs buildkitd with its state on a tmpfs of this size."""

    def __init__(self, programs: BuildKit, *, size_bytes: int, inodes: int) -> None:
        self._programs = programs
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bentpipe-buildkitd-")))
        self.cache = self.folder / "cache"
        self.socket = self.folder / "buildkitd.sock"
        self._options = f"size={size_bytes},nr_inodes={inodes}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.cache.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", self.cache], check=True)
            stack.callback(self._unmount)
            log = stack.enter_context((self.folder / "log").open("wb"))
            command = [*CONTAINED, self._programs.buildkitd, "--addr", f"unix://{self.socket}"]
            command += ["--root", str(self.cache / "root"), "--oci-worker-binary", self._programs.runc, *BUILDKITD]
            command += ["--oci-worker-gc=false"]
            process = subprocess.Popen(command, stderr=log, stdout=log)
            stack.callback(process.wait)
            stack.callback(process.kill)  # unshare leaves SIGTERM to its child, and its child dies with it
            deadline = time.monotonic() + START_DEADLINE_S
            while self.buildctl("debug", "workers").returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"buildkitd does not start: {(self.folder / 'log').read_text()[-2000:]}")
                time.sleep(POLL_S)
            self._stack.push(stack.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _unmount(self) -> None:
        # Mounts of buildkitd's own end with its mount namespace, a moment after its process.
        subprocess.run(["umount", "--lazy", self.cache], check=True)

    def buildctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run buildctl to its end."""
        command = [self._programs.buildctl, "--addr", f"unix://{self.socket}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def build(self, *steps: tuple[str, ...], data: bytes = b"") -> Iterator[Build]:
        """Begin a build FROM scratch that copies `data` and runs `step` with each of `steps`' arguments."""
        mark = secrets.token_hex(8)
        context = self.folder / mark
        context.mkdir()
        shutil.copy(self._programs.step, context / "step")
        (context / "data").write_bytes(data)
        runs = [
            f'RUN ["/step", {", ".join(f"{word!r}" for word in (*step, mark))}]'.replace("'", '"') for step in steps
        ]
        (context / "Dockerfile").write_text("\n".join(["FROM scratch", "COPY step /step", "COPY data /data", *runs]))
        command = [self._programs.buildctl, "--addr", f"unix://{self.socket}", "build", "--frontend", "dockerfile.v0"]
        command += ["--progress", "plain", "--local", f"context={context}", "--local", f"dockerfile={context}"]
        build = Build(command, mark, self.folder / f"{mark}.log", {})
        try:
            yield build
        finally:
            build.close()
            shutil.rmtree(context)
