"""Builds `bentpipe.native._engine` (CFFI, API mode) from the C files. The declarations are those of include/bp.h itself."""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(os.path.relpath(Path(__file__).resolve().parent))
"""Relative to where setup.py runs: setuptools takes no absolute sources."""

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow"]


def declarations(header: str) -> str:
    """Strip what CFFI's parser does not take: preprocessor lines and attributes."""
    lines = [line for line in header.splitlines() if not re.match(r"\s*#", line)]
    return "\n".join(lines).replace("BP_MUST_CHECK ", "")


ffi = FFI()
ffi.cdef(declarations((HERE / "include" / "bp.h").read_text()))
ffi.set_source(
    "bentpipe.native._engine",
    '#include "bp.h"',
    sources=sorted(str(path) for path in (HERE / "src").glob("*.c")),
    depends=sorted(str(path) for folder in ("include", "src") for path in (HERE / folder).glob("*.h")),
    include_dirs=[str(HERE / "include")],
    libraries=["ssl", "crypto"],
    extra_compile_args=FLAGS,
    py_limited_api=True,
)
