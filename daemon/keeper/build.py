"""Which code of the keeper this is. Imports next to nothing: the keeper stays small."""

import zlib
from pathlib import Path

from bentpipe.daemon import private_socket


def build_of_files() -> str:
    """A number that differs if any source file of the keeper does. Raises OSError."""
    found = 0
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(private_socket.__file__)):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"
