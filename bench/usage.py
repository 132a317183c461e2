"""What processes use: CPU seconds, memory, system calls. It is read from /proc, which does not slow them down."""

import dataclasses
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SETTLE_S = 0.5
"""The wait before memory is read: then RCU and per-core caches have given back what was freed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds: the scheduler's exact count, shared out between user and system as the clock tick sampled them."""

    total_s: float
    user_sampled_s: float
    system_sampled_s: float

    @property
    def user_s(self) -> float:
        """In the process's own code."""
        sampled = self.user_sampled_s + self.system_sampled_s
        return self.total_s * (self.user_sampled_s / sampled if sampled else 0.5)

    @property
    def system_s(self) -> float:
        """In the kernel."""
        return self.total_s - self.user_s

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(
            self.total_s - other.total_s,
            self.user_sampled_s - other.user_sampled_s,
            self.system_sampled_s - other.system_sampled_s,
        )


def cpu_used(pids: Iterable[int]) -> Cpu:
    """CPU used so far by these processes and their threads."""
    user = system = exact = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11]) * TICK_S
        system += int(fields[12]) * TICK_S
        for task in Path(f"/proc/{pid}/task").iterdir():
            exact += int((task / "schedstat").read_text().split()[0]) / 1e9
    return Cpu(exact, user, system)


def resident_bytes(pids: Iterable[int]) -> int:
    """Anonymous resident memory (RssAnon): what a process took for itself, without the programs' own pages."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/status").read_text()
        total += int(re.findall(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)[0]) << 10
    return total


def kernel_bytes() -> int:
    """Memory that the kernel itself holds, of the whole machine: slabs, stacks, page tables, sockets' pages."""
    time.sleep(SETTLE_S)
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    memory = sum(int(fields[name]) << 10 for name in ("Slab", "KernelStack", "PageTables"))
    pages = re.findall(r"^TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    return memory + int(pages[0]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pids: Iterable[int]) -> int:
    """Descriptors that the processes hold."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


class SyscallCount:
    """Counts the system calls of processes with strace -c; they run slower meanwhile, so never together with a clock."""

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be used here."""
        return None if shutil.which("strace") else "strace is not installed"

    def __init__(self, pids: Iterable[int]) -> None:
        attach = [word for pid in pids for word in ("-p", str(pid))]
        self._process = subprocess.Popen(
            ["strace", "-f", "-c", "-U", "calls,errors,name", *attach], stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.5)

    def stop(self) -> dict[str, int]:
        """Calls by name."""
        self._process.terminate()
        _, words = self._process.communicate()
        return {
            match[3]: int(match[1])
            for match in (re.match(r"\s*(\d+)\s+(\d+)?\s*(\w+)$", line) for line in words.splitlines())
            if match and match[3] != "total"
        }
