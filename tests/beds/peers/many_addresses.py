"""Strangers from IPv6 addresses of many prefixes, in a network namespace of its own: `unshare --net` runs this.

Argument: a configuration whose first listener is at [::1]. Prints, as JSON, how many connections of each group are open
when all have come: two that came first from a /64 of their own, 60 from 60 /64s of one /48, and one that came last.
"""

import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from beds.hosts.served import Served

SET_UP = (
    ("ip", "link", "set", "lo", "up"),
    ("ip", "-6", "route", "add", "local", "2001:db8::/32", "dev", "lo"),
    ("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1"),
)
CROWD = 60
CALM_S = 1.3
"""Longer than the grace of daemon/connections/quotas.py."""


def connect(source: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.bind((source, 0))
    sock.connect(("::1", port))
    return sock


def still_open(socks: list[socket.socket]) -> int:
    """Of clients that said nothing, and to whom nothing is said."""
    ended, _, _ = select.select(socks, [], [], 0)
    return len(socks) - len(ended)


def main() -> None:
    for command in SET_UP:
        subprocess.run(command, check=True)
    with Served(Path(sys.argv[1])) as served:
        port = served.ports[0]
        first = [connect(f"2001:db8:2::{number}", port) for number in (1, 2)]
        time.sleep(CALM_S)
        crowd = [connect(f"2001:db8:1:{number:x}::1", port) for number in range(CROWD)]
        time.sleep(CALM_S)
        last = [connect("2001:db8:3::1", port)]
        deadline = time.monotonic() + 60
        while served.scrape()["bentpipe_connections_accepted_total", ""] < len(first) + CROWD + len(last):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(CALM_S)
        print(json.dumps({"first": still_open(first), "crowd": still_open(crowd), "last": still_open(last)}))


if __name__ == "__main__":
    main()
