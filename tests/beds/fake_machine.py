"""A tree with the files of /proc and /sys/fs/cgroup that the responder reads. Tests write what a kernel would."""

from pathlib import Path

BOOT_ID = "11111111-2222-3333-4444-555555555555"


def pressure(some_us: int, full_us: int, full_avg10: float = 0.0) -> str:
    """A file of PSI."""
    return (
        f"some avg10=12.50 avg60=1.00 avg300=0.00 total={some_us}\n"
        f"full avg10={full_avg10:.2f} avg60=0.00 avg300=0.00 total={full_us}\n"
    )


class FakeMachine:
    """The tree below `root`. `cgroup` is the builds', with a limit of 1 GiB and no step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cgroup = root / "sys/fs/cgroup/builds"
        self.write("proc/sys/kernel/random/boot_id", BOOT_ID + "\n")
        self.write(
            "proc/meminfo",
            "MemTotal: 4096 kB\nMemAvailable: 1024 kB\nSwapTotal: 8 kB\nSwapFree: 4 kB\nHugePages_Total: 0\n",
        )
        self.write("proc/loadavg", "1.50 1.00 0.50 3/200 4711\n")
        self.write("proc/vmstat", "pgfault 17\noom_kill 5\n")
        for name in ("cpu", "memory", "io"):
            self.write(f"proc/pressure/{name}", pressure(1000, 500))
            self.limit(f"{name}.pressure", pressure(2000, 0))
        self.limit(
            "cpu.stat",
            "usage_usec 123456\nuser_usec 1\nsystem_usec 2\nnr_periods 9\nnr_throttled 3\nthrottled_usec 77\n",
        )
        self.limit("cpu.max", "190000 100000\n")
        self.limit("memory.current", f"{1 << 30}\n")
        self.limit("memory.max", f"{1 << 30}\n")
        self.limit("memory.stat", "anon 1\ninactive_file 4096\nactive_file 4096\n")
        self.limit("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n")
        self.limit("pids.current", "17\n")
        self.limit("pids.max", "max\n")

    def write(self, name: str, text: str) -> None:
        """Write a file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def limit(self, name: str, text: str) -> None:
        """Write a file of the builds' cgroup."""
        self.write(f"sys/fs/cgroup/builds/{name}", text)

    def step(self, name: str, memory: int, *, cache: int = 0, kills: int = 0, full_avg10: float = 0.0) -> Path:
        """Make or change a step, `name` as its path below the builds' cgroup. Returns its folder."""
        for file, text in (
            ("memory.current", f"{memory}\n"),
            ("memory.stat", f"anon {memory - cache}\ninactive_file {cache}\n"),
            ("memory.events", f"oom 0\noom_kill {kills}\n"),
            ("memory.pressure", pressure(0, 0, full_avg10)),
            ("memory.max", "max\n"),
            ("memory.oom.group", "0\n"),
            ("cgroup.kill", ""),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
        ):
            self.limit(f"{name}/{file}", text)
        return self.cgroup / name
