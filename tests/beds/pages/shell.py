"""Runs the blocks of a page in one shell, as a reader would who follows it from top to bottom.

The shell is root. It has a folder, a network and processes of its own: a page may take port 8372, and nothing outlives it.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from beds.pages.blocks import Block

HOSTS = "127.0.0.1 localhost edge.example.com\n::1 localhost\n"
PORT_DEADLINE_S = 60
PAGE_DEADLINE_S = 240.0
LAST_CHARACTERS = 6000
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
ENTER = 'ip link set lo up; mount --bind "$1" /etc/hosts; exec bash -euo pipefail "$2"'
FUNCTIONS = f"""
await_port() {{
    local end=$((SECONDS + {PORT_DEADLINE_S}))
    until (exec 3<>/dev/tcp/127.0.0.1/$1) 2>/dev/null; do
        if ! kill -0 "$2" 2>/dev/null || ((SECONDS > end)); then
            echo "nothing listens on port $1:"
            cat "$3"
            return 1
        fi
        sleep 0.1
    done
}}
"""


def script_of(page: str, blocks: Sequence[Block], first: str = "") -> str:
    """The shell script that a page's blocks are: files, commands, and commands in the background; `first` comes first."""
    parts = [FUNCTIONS, first]
    for block in blocks:
        where = f"{page}:{block.line}"
        parts.append(f"echo {shlex.quote(f'=== {where}')}\n")
        if block.file is not None:
            folder = os.path.dirname(block.file)
            make = f"mkdir -p {shlex.quote(folder)}\n" if folder else ""
            parts.append(f"{make}cat >{block.file} <<'END-OF-BLOCK'\n{block.text}END-OF-BLOCK\n")
        elif block.port is not None:
            log = f"$BED/background-{block.line}"
            parts.append(f'(\n{block.text}) >"{log}" 2>&1 &\nawait_port {block.port} $! "{log}"\n')
        else:
            parts.append(block.text)
    return "".join(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Bed:
    """What a page finds: folders before PATH, variables, and what its shell does first.

    bentpipe and the tests' Python are on PATH anyhow.
    """

    programs: tuple[Path, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    first: str = ""


def run_page(page: str, blocks: Sequence[Block], folder: Path, bed: Bed) -> str:
    """Run a page's blocks in an empty folder, the home directory. Returns what they print; fails the test if one fails."""
    home = folder / "home"
    home.mkdir()
    (folder / "hosts").write_text(HOSTS)
    (folder / "page.sh").write_text(script_of(page, blocks, bed.first))
    own = Path(sys.executable).parent
    environment = {
        "PATH": ":".join([*map(str, bed.programs), str(own), "/usr/sbin:/usr/bin:/sbin:/bin"]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "BED": str(folder),
        **bed.variables,
    }
    command = ["unshare", *NAMESPACES, "sh", "-euc", ENTER, "sh", str(folder / "hosts"), str(folder / "page.sh")]
    process = subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=PAGE_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{page} does not end: {output[-LAST_CHARACTERS:]}") from None
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert process.returncode == 0, output[-LAST_CHARACTERS:]
    return output
