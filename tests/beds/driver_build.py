"""Compiles the engine and a program that drives it: with runtime assertions, and a sanitizer of gcc's (or none).

BP_DEBUG switches the assertions of native/src/check.h on. Under the driver's engine lie faults of its system calls.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bentpipe.native import _build

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
DRIVER = ROOT / "tests" / "native" / "driver"
STORMS = ROOT / "tests" / "native" / "storm"
"""What the programs of the next two folders share."""
STORM = ROOT / "tests" / "native" / "opener"
JOIN_STORM = ROOT / "tests" / "native" / "joiner"
LANE_STORM = ROOT / "tests" / "native" / "lanes"
READER = ROOT / "tests" / "native" / "greeting"
ASKER = ROOT / "tests" / "native" / "asker"
PURE = ("request.c", "first_settings.c", "greeting_rules.c", "sock_diag.c")
"""What the program of that folder calls: files of the engine without threads."""

FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror")
DEFINED = ("-DTICK_MS=20", "-DBP_DEBUG")
WRAPPED = ("recv", "send", "splice", "epoll_wait", "pipe2", "fcntl", "malloc")
WRAP = "-Wl," + ",".join(f"--wrap={name}" for name in WRAPPED)

LIBRARIES = ("-lpthread", *(f"-l{name}" for name in _build.LIBRARIES))


def _compiler(sanitizer: str) -> tuple[str, ...]:
    sanitize = () if sanitizer == "none" else (f"-fsanitize={sanitizer}",)
    includes = (f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}", f"-I{DRIVER}")
    return ("gcc", *FLAGS, *DEFINED, *sanitize, *includes)


def compile_objects(sources: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Compile each file into `folder`, without sanitizer: the object files, by the name of the source.

    Raises CalledProcessError.
    """
    files = list(sources)
    subprocess.run([*_compiler("none"), "-c", *files], cwd=folder, check=True)
    return {source.name: folder / f"{source.stem}.o" for source in files}


def link_driver(parts: Iterable[Path], program: Path, sanitizer: str = "none") -> None:
    """Link objects, or compile and link sources. Raises CalledProcessError."""
    subprocess.run([*_compiler(sanitizer), *parts, WRAP, *LIBRARIES, "-o", program], check=True)


def driver_sources() -> list[Path]:
    """All C files of the engine and of the driver."""
    return [*sorted(NATIVE.glob("src/*.c")), *sorted(DRIVER.glob("*.c"))]


def build_driver(sanitizer: str) -> Path:
    """Compile, unless the program is newer than its sources. Raises CalledProcessError."""
    program = ROOT / "build" / f"driver-{sanitizer.partition(',')[0]}"
    if _is_old(program, DRIVER):
        link_driver(driver_sources(), program, sanitizer)
    return program


def build_storm(sanitizer: str) -> Path:
    """The same for the program that gives an opener connections, which meets no faults."""
    return _build_alone("storm", sanitizer, STORMS, STORM)


def build_join_storm(sanitizer: str) -> Path:
    """The same for the program that gives a joiner clients and satellites."""
    return _build_alone("join-storm", sanitizer, STORMS, JOIN_STORM)


def build_lane_storm(sanitizer: str) -> Path:
    """The same for the program that has clients brought to satellites while what was told changes."""
    return _build_alone("lane-storm", sanitizer, STORMS, LANE_STORM)


def build_asker(sanitizer: str) -> Path:
    """The same for the program that calls pure functions of the engine."""
    return _build_parts("asker", sanitizer, [NATIVE / "src" / name for name in PURE], ASKER)


def _build_alone(name: str, sanitizer: str, *folders: Path) -> Path:
    return _build_parts(name, sanitizer, sorted(NATIVE.glob("src/*.c")), *folders)


def _build_parts(name: str, sanitizer: str, sources: Iterable[Path], *folders: Path) -> Path:
    """Compile files of the engine and all of the folders', unless the program is newer. Raises CalledProcessError.

    Others may do so at the same time.
    """
    program = ROOT / "build" / f"{name}-{sanitizer.partition(',')[0]}"
    if _is_old(program, *folders):
        made = program.with_name(f"{program.name}.{os.getpid()}")
        _link(made, sanitizer, sources, *folders)
        made.replace(program)
    return program


def _link(program: Path, sanitizer: str, sources: Iterable[Path], *folders: Path) -> None:
    own = [path for folder in folders for path in sorted(folder.glob("*.c"))]
    includes = [f"-I{folder}" for folder in folders]
    subprocess.run([*_compiler(sanitizer), *includes, *sources, *own, *LIBRARIES, "-o", program], check=True)


def link_reader(program: Path, sanitizer: str, *flags: str) -> Path:
    """Compile the program that reads greetings, tests/native/greeting. Raises CalledProcessError."""
    sources = [*sorted(NATIVE.glob("src/greeting*.c")), *sorted(READER.glob("*.c"))]
    subprocess.run([*_compiler(sanitizer), *flags, *sources, *LIBRARIES, "-o", program], check=True)
    return program


def build_reader(sanitizer: str) -> Path:
    """The same, unless the program is newer than its sources."""
    program = ROOT / "build" / f"reader-{sanitizer.partition(',')[0]}"
    return link_reader(program, sanitizer) if _is_old(program, READER) else program


def _is_old(program: Path, *folders: Path) -> bool:
    program.parent.mkdir(exist_ok=True)
    parts = (NATIVE / "src", NATIVE / "include", *folders)
    sources = [*(path for folder in parts for path in folder.glob("*.[ch]")), Path(__file__)]
    return not program.exists() or program.stat().st_mtime <= max(path.stat().st_mtime for path in sources)
