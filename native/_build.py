"""Builds `bentpipe.native._engine` (CFFI, API mode) from the C files. The declarations are those of include/bp.h itself.

Without nghttp2's header at build time the engine has no greeting in C, and Python reads all greetings. The build, the
daemon's log and `bentpipe doctor` say so.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(os.path.relpath(Path(__file__).resolve().parent))
"""Relative to where setup.py runs: setuptools takes no absolute sources."""

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow"]
NGHTTP2_HEADER = "nghttp2/nghttp2.h"
WITHOUT_NGHTTP2 = (
    f"{NGHTTP2_HEADER} is missing: the engine is built without the greeting in C, and new connections take more CPU time. "
    "Install libnghttp2-dev (Fedora, Amazon Linux: libnghttp2-devel), and build again."
)


def declarations(header: str) -> str:
    """Strip what CFFI's parser does not take: preprocessor lines and attributes."""
    lines = [line for line in header.splitlines() if not re.match(r"\s*#", line)]
    return "\n".join(lines).replace("BP_MUST_CHECK ", "")


def has_header(name: str) -> bool:
    """Whether the C compiler finds a header, as `__has_include` in the C files does."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    asked = subprocess.run(
        [*compiler, "-E", "-"], input=f"#include <{name}>\n", capture_output=True, text=True, check=False
    )
    return asked.returncode == 0


def libraries() -> list[str]:
    """What the C files are linked to."""
    return ["ssl", "crypto", *(["nghttp2"] if has_header(NGHTTP2_HEADER) else [])]


LIBRARIES = libraries()
if "nghttp2" not in LIBRARIES:
    print(WITHOUT_NGHTTP2, file=sys.stderr)

ffi = FFI()
ffi.cdef(declarations((HERE / "include" / "bp.h").read_text()))
ffi.set_source(
    "bentpipe.native._engine",
    '#include "bp.h"',
    sources=sorted(str(path) for path in (HERE / "src").glob("*.c")),
    depends=sorted(str(path) for folder in ("include", "src") for path in (HERE / folder).glob("*.h")),
    include_dirs=[str(HERE / "include")],
    libraries=LIBRARIES,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)
