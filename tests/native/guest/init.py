"""The first process of the guest: mounts, loads TLS, brings the loopback up, runs the tests, powers off.

Runs as `init=` on the host's own file system (hostfs), so Python, OpenSSL and the tests are the host's and only the
kernel is another one. Arguments come by the environment, which the kernel fills from its command line.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

SYS_FINIT_MODULE = 313  # x86-64
RB_POWER_OFF = 0x4321FEDC  # reboot(2)
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str) -> None:
    libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None)


def load(module: str) -> None:
    with open(module, "rb") as file:
        if libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0) < 0:
            raise OSError(ctypes.get_errno(), f"cannot load {module}")


def main() -> None:
    folder = Path(os.environ["GUEST_FOLDER"])
    code = 1
    try:
        mount("proc", "/proc")
        mount("sysfs", "/sys")
        (folder / "tmp").mkdir(exist_ok=True)
        mount("tmpfs", str(folder / "tmp"))  # not over /tmp: the project may be in it
        for module in os.environ["GUEST_MODULES"].split(","):
            load(module)
        with socket.socket() as sock:
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        with (folder / "output").open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *os.environ["GUEST_TESTS"].split(",")],
                cwd=os.environ["GUEST_ROOT"],
                env={
                    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
                    "HOME": str(folder / "tmp"),
                    "TMPDIR": str(folder / "tmp"),
                    "BENTPIPE_GUEST": "1",
                    "BENTPIPE_EXAMPLES": os.environ["GUEST_EXAMPLES"],
                    "BENTPIPE_SHORT_CONNECTIONS": "200",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        code = done.returncode
        (folder / "tls_stat").write_bytes(Path("/proc/net/tls_stat").read_bytes())
    finally:
        (folder / "code").write_text(str(code))
        os.sync()
        libc.reboot(RB_POWER_OFF)


main()
