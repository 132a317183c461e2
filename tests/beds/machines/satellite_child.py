"""A small satellite for the tests of the process provider, run as a program: a TCP server with odd habits.

usage: satellite_child.py FOLDER HOST PORT [habit...]
FOLDER is where it leaves traces, and by its presence in the arguments the tests find its processes.
It answers one line per connection: a token made at its start, its environment, and its open descriptors, as JSON.
"""

import json
import mmap
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    folder, host, port, *habits = sys.argv[1:]
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
    if "fail" in habits:
        print("first line", flush=True)
        print("no such\x1b[31m thing", file=sys.stderr)
        sys.exit(3)
    if "deaf" in habits:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "parent" in habits or "runaway" in habits:
        # Both hold the output pipe; the runaway leaves the session and the group.
        subprocess.Popen(
            [sys.executable, "-ISc", "import time; time.sleep(600)", folder], start_new_session="runaway" in habits
        )
    if "counting" in habits:
        threading.Thread(target=count, args=(Path(folder) / f"count-{port}",), daemon=True).start()
    if "mute" in habits:
        Path(folder, "mute").touch()
        time.sleep(600)
    token = secrets.token_hex()
    with socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(json.dumps([token, dict(os.environ), fds]).encode() + b"\n")


def count(path: Path) -> None:
    path.write_bytes(bytes(8))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        while True:
            memory[:8] = (int.from_bytes(memory[:8], "little") + 1).to_bytes(8, "little")
            time.sleep(0.0005)


main()
