"""A satellite's /proc, /sys and /etc as files in a folder, as they are if all is well. Tests then change one thing."""

import hashlib
import json
import os
from pathlib import Path

from beds.machines.rendered import machines_of_the_sample
from bentpipe.daemon.image.programs.settings import SETTINGS, SatelliteSettings, limits_here

PID = "321"
DISK = "259:0"
CACHE_DISK = "259:1"
MOUNTS = f"""20 1 {DISK} / / rw,relatime shared:1 - ext4 /dev/root rw
21 20 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
22 20 {CACHE_DISK} / /var/lib/bentpipe/cache rw,noatime shared:2 - xfs /dev/nvme1n1 rw
23 20 {CACHE_DISK} /snapshots /var/lib/buildkit/runc-overlayfs/snapshots rw shared:2 - xfs /dev/nvme1n1 rw
24 20 {CACHE_DISK} /content /var/lib/buildkit/runc-overlayfs/content rw shared:2 - xfs /dev/nvme1n1 rw
"""
STEPS_MOUNT = "/builds.slice/buildkitd.service/steps"
BUILDKIT_MOUNTS = f"{MOUNTS}30 21 0:30 {STEPS_MOUNT} /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
STAT = f"{PID} (python3 (main)) S " + "0 " * 36 + "{priority} {policy} 0 0\n"
"""proc_pid_stat(5): fields 40 and 41 are the real-time priority and the policy."""
SYSTEMCTL = f"""#!/bin/sh
case "$2" in
    buildkitd.service|bentpipe-responder.service) printf 'ActiveState=active\\nMainPID={PID}\\n';;
    builds.slice) printf 'ActiveState=active\\nIPAddressDeny=169.254.169.254/32 fd00:ec2::254/128\\n';;
    hibinit-agent.service) printf 'UnitFileState=enabled\\n';;
esac
"""


class SatelliteTree:
    """The folder. `write` changes a file of the machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        machine = machines_of_the_sample()[0]
        [file] = [each for each in machine.image().common if each.path == str(SETTINGS)]
        self.settings = SatelliteSettings(**json.loads(file.content) | {"programs": "/opt/buildkit"})
        for name, text in self._healthy().items():
            self.write(name, text)
        self._write_limits()
        (root / "sys/dev/block").mkdir(parents=True)
        for number, name in ((DISK, "nvme0n1"), (CACHE_DISK, "nvme1n1")):
            (root / "sys/dev/block" / number).symlink_to(root / "sys/class/block" / name)
        self.write_program("usr/local/lib/bentpipe/runtime", "#!/bin/sh\n")
        for folder in ("var/lib/bentpipe/cache", "var/lib/buildkit"):
            (root / folder).mkdir(parents=True)
        program = (root / "usr/local/lib/bentpipe/runtime").read_bytes()
        self.write(
            "etc/bentpipe/programs.sha256", f"{hashlib.sha256(program).hexdigest()}  /usr/local/lib/bentpipe/runtime\n"
        )
        self.write_program("opt/buildkit/buildctl", f"#!/bin/sh\necho '{self.workers(self.kept_bytes)}'\n")
        self.bin = root / "bin"
        self.write_program("bin/systemctl", SYSTEMCTL)

    def _healthy(self) -> dict[str, str]:
        found = {
            "proc/self/mountinfo": MOUNTS,
            f"proc/{PID}/mountinfo": BUILDKIT_MOUNTS,
            f"proc/{PID}/oom_score_adj": "-500\n",
            f"proc/{PID}/stat": STAT.format(priority=20, policy=2),
            "proc/meminfo": "MemTotal:        8388608 kB\n",
            "proc/pressure/memory": "some avg10=0.00\n",
            "proc/swaps": "Filename Type Size Used Priority\n",
            "proc/cmdline": "root=/dev/nvme0n1p1 quiet\n",
            "proc/sys/vm/swappiness": "0\n",
            "sys/power/state": "freeze mem disk\n",
            "run/bentpipe/buildkitd.toml": 'binary = "/usr/local/lib/bentpipe/runtime"\n',
            "etc/bentpipe/responder.json": "{}",
        }
        for number, name in ((DISK, "nvme0n1"), (CACHE_DISK, "nvme1n1")):
            found[f"sys/class/block/{name}/dev"] = f"{number}\n"
            found[f"sys/class/block/{name}/queue/scheduler"] = "[none] mq-deadline\n"
        return found

    def _write_limits(self) -> None:
        limits = limits_here(self.settings, self.root / "proc")
        unit = "builds.slice/buildkitd.service"
        values = {
            "builds.slice/cpu.max": f"{limits.cpu_quota_percent * 1000} 100000",
            "builds.slice/memory.max": str(limits.slice_bytes),
            "builds.slice/memory.high": "max",
            "builds.slice/pids.max": "max",
            "builds.slice/io.max": "",
            f"{unit}/steps/memory.max": str(limits.steps_bytes),
            f"{unit}/steps/pids.max": str(self.settings.pids_max),
            f"{unit}/steps/memory.swap.max": "0",
            f"{unit}/daemon/cgroup.procs": f"{PID}\n999",
            "responder.slice/memory.min": "67108864",
            "responder.slice/bentpipe-responder.service/memory.min": "67108864",
            "responder.slice/io.latency": f"{DISK} target=50000\n{CACHE_DISK} target=50000",
        }
        for name, value in values.items():
            self.write(f"sys/fs/cgroup/{name}", f"{value}\n")

    @property
    def kept_bytes(self) -> int:
        """What BuildKit's garbage collection is to leave of this folder's file system."""
        seen = os.statvfs(self.root)
        return seen.f_blocks * seen.f_frsize * self.settings.keep_percent // 100

    @staticmethod
    def workers(kept_bytes: int) -> str:
        """What `buildctl debug workers` prints, as far as it is read."""
        return json.dumps([{"gcPolicy": [{"maxUsedSpace": kept_bytes, "reservedSpace": 0}]}])

    def write(self, name: str, text: str) -> None:
        """Give a file this content."""
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def write_program(self, name: str, text: str) -> None:
        """The same for a program."""
        self.write(name, text)
        (self.root / name).chmod(0o755)
