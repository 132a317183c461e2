"""A root that has booted: commands and files in it, and the host's programs in its network.

It boots in a second or two. Its layer above the cached folder is thrown away at the end, its network has only a loopback
device, and its cgroup is killed as a whole, so that nothing outlives a test.
"""

import contextlib
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from beds.booted.root import cgroup_root

HERE = Path(__file__).parent
BOOT_DEADLINE_S = COMMAND_DEADLINE_S = 180.0
"""They end what hangs. Idle, a boot takes two seconds and a command of ours one; three of them took 60 s at a load of 25."""
POLL_S = 0.05
MIDDLE = 'echo $$ >$1/cgroup.procs; shift; exec "$@"'
"""Moves itself into a cgroup before unshare(1) makes that the root's own."""
NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--cgroup")
CLEAN = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
LAST_LINES = 40


class BootedError(Exception):
    """A command in the root failed, or it did not boot; `str()` has the last words."""


class Booted:
    """`with Booted(booted_root(SUITE)) as host:` is a Debian in which systemd has started everything."""

    def __init__(self, root: Path) -> None:
        self._base = root
        self._folder = Path(tempfile.mkdtemp(prefix="bentpipe-booted-"))
        self._cgroup = cgroup_root() / f"bentpipe-booted-{uuid.uuid4().hex[:12]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _boot(self) -> None:
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir()
        (self._folder / "base").symlink_to(self._base)
        self._cgroup.mkdir()
        enter = ["unshare", *NAMESPACES, "sh", str(HERE / "enter.sh"), str(self._folder)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-euc", MIDDLE, "sh", str(self._cgroup), *enter],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_DEADLINE_S
        while not self._is_reachable(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise BootedError(f"the root does not boot: {said}")
            time.sleep(POLL_S)
        state = self.run("systemctl is-system-running --wait || true", deadline_s=BOOT_DEADLINE_S).strip()
        if state != "running":
            raise BootedError(f"the root has booted, but is {state}: {self.run('systemctl --failed --no-pager')}")

    def _is_reachable(self, unshare_pid: int) -> bool:
        """Until its root is changed, a command for it would run on the host."""
        with contextlib.suppress(BootedError, OSError):
            children = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
                self._init = int(children[0])
                self.run("test -S /run/systemd/private")
                return True
        return False

    def close(self) -> None:
        """End all its processes, and remove what it has written."""
        if self._process is not None:
            (self._cgroup / "cgroup.kill").write_text("1")
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._cgroup.exists():
            self._remove_cgroup(time.monotonic() + COMMAND_DEADLINE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_cgroup(self, deadline: float) -> None:
        """A cgroup can be removed only when the last of its processes is gone, which takes some milliseconds."""
        while True:
            try:
                for folder in sorted(self._cgroup.rglob("*/"), key=lambda each: -len(each.parts)):
                    folder.rmdir()
                self._cgroup.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    @property
    def _enter(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

    @property
    def command(self) -> tuple[str, ...]:
        """What to put before a command of the root's own, to run it there."""
        return (*self._enter, *CLEAN)

    @property
    def network(self) -> tuple[str, ...]:
        """What to put before a command of the host, so that it runs in this network."""
        return ("nsenter", "--target", str(self._init), "--net")

    def attempt(
        self, script: str, *arguments: str, stdin: bytes = b"", deadline_s: float = COMMAND_DEADLINE_S
    ) -> tuple[int, str]:
        """Run a shell script in it, with $1 and so on. Returns (exit code, output); raises BootedError at the deadline."""
        try:
            done = subprocess.run(
                [*self.command, "/bin/sh", "-euc", script, "sh", *arguments],
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            said = (exc.stdout or b"").decode(errors="replace")
            raise BootedError(f"{script[:80]!r} did not end: {said[-3000:]}") from exc
        return done.returncode, done.stdout.decode(errors="replace")

    def run(self, script: str, *arguments: str, stdin: bytes = b"", deadline_s: float = COMMAND_DEADLINE_S) -> str:
        """As `attempt`. Returns the output; raises BootedError if the script fails."""
        code, output = self.attempt(script, *arguments, stdin=stdin, deadline_s=deadline_s)
        if code != 0:
            raise BootedError(f"{script[:80]!r} ended with {code}: {output[-3000:]}")
        return output

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in it, and its folders. Raises BootedError."""
        quoted = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {quoted})"; cat > {quoted}; chmod {mode:o} {quoted}', stdin=data)

    def journal(self, unit: str) -> str:
        """What a unit has logged last."""
        return self.run("journalctl --no-pager --lines=$2 --unit=$1", unit, str(LAST_LINES))
