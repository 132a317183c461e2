"""Compiles the engine and its driver into one program, with a sanitizer of gcc's (or none) and faults under the calls."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
DRIVER = ROOT / "tests" / "native" / "driver"

FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-DTICK_MS=20", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror")
WRAPPED = ("recv", "send", "splice", "epoll_wait", "pipe2", "fcntl", "malloc")


def build_driver(sanitizer: str) -> Path:
    """Compile, unless it is newer than its sources. Raises CalledProcessError."""
    program = ROOT / "build" / f"driver-{sanitizer.partition(',')[0]}"
    sources = [*sorted((NATIVE / "src").glob("*.c")), *sorted(DRIVER.glob("*.c"))]
    headers = [*(NATIVE / "src").glob("*.h"), *(NATIVE / "include").glob("*.h"), *DRIVER.glob("*.h")]
    inputs = [*sources, *headers, Path(__file__)]
    if program.exists() and program.stat().st_mtime > max(each.stat().st_mtime for each in inputs):
        return program
    program.parent.mkdir(exist_ok=True)
    wrap = "-Wl," + ",".join(f"--wrap={name}" for name in WRAPPED)
    includes = (f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}", f"-I{DRIVER}")
    libraries = (wrap, "-lssl", "-lcrypto", "-lpthread")
    sanitize = () if sanitizer == "none" else (f"-fsanitize={sanitizer}",)
    subprocess.run(["gcc", *FLAGS, *sanitize, *includes, *sources, *libraries, "-o", program], check=True)
    return program
