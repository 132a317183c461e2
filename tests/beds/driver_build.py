"""Compiles the engine and its driver into one program: with runtime assertions, a sanitizer of gcc's (or none), and faults.

BP_DEBUG switches the assertions of native/src/check.h on. The faults lie under the engine's system calls.
"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
DRIVER = ROOT / "tests" / "native" / "driver"

FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror")
DEFINED = ("-DTICK_MS=20", "-DBP_DEBUG")
WRAPPED = ("recv", "send", "splice", "epoll_wait", "pipe2", "fcntl", "malloc")


def compile_driver(native: Path, program: Path, sanitizer: str) -> None:
    """Compile the engine of the folder `native` with the driver. Raises CalledProcessError."""
    sources = [*sorted((native / "src").glob("*.c")), *sorted(DRIVER.glob("*.c"))]
    wrap = "-Wl," + ",".join(f"--wrap={name}" for name in WRAPPED)
    includes = (f"-I{native / 'include'}", f"-I{native / 'src'}", f"-I{DRIVER}")
    libraries = (wrap, "-lssl", "-lcrypto", "-lpthread")
    sanitize = () if sanitizer == "none" else (f"-fsanitize={sanitizer}",)
    subprocess.run(["gcc", *FLAGS, *DEFINED, *sanitize, *includes, *sources, *libraries, "-o", program], check=True)


def build_driver(sanitizer: str) -> Path:
    """Compile, unless the program is newer than its sources. Raises CalledProcessError."""
    program = ROOT / "build" / f"driver-{sanitizer.partition(',')[0]}"
    sources = [*NATIVE.glob("src/*.[ch]"), *NATIVE.glob("include/*.h"), *DRIVER.glob("*.[ch]"), Path(__file__)]
    if not program.exists() or program.stat().st_mtime <= max(path.stat().st_mtime for path in sources):
        program.parent.mkdir(exist_ok=True)
        compile_driver(NATIVE, program, sanitizer)
    return program
