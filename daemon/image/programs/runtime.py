#!/usr/bin/python3 -IS
"""What BuildKit runs instead of runc: it changes the step's protection and how the step is killed, then becomes runc.

- A process inherits oom_score_adj, so every step would have buildkitd's protection from the kernel's OOM killer.
- If a step runs out of memory, all of it ends (memory.oom.group): a build whose compiler alone was killed often hangs.
- Earthly's fork does not read the step's memory.events. So under it this program stays beside runc, and says in the step's
  output that memory ran out.

It runs once for every step, so it imports little. It must never run a step without having changed the configuration.
"""

from __future__ import annotations

import json
import os
import signal
import sys

SETTINGS = "/etc/bentpipe/satellite.json"
STEP_SCORE = 500
"""oom_score_adj of a step: before everything else on the machine."""
OWN_SCORE = 0
KILLED = 128 + signal.SIGKILL
PR_SET_PDEATHSIG = 1
CGROUPS = "/sys/fs/cgroup"
OUT_OF_MEMORY = "bentpipe: this step ran out of memory: builds have reached the memory limit of their satellite\n"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH)


def bundle_of(arguments: list[str]) -> str | None:
    """Return the folder of the container that is made; None for commands that make none (`exec`, `kill`, `delete`, …)."""
    if "run" not in arguments and "create" not in arguments:
        return None
    for index, each in enumerate(arguments):
        if each in ("--bundle", "-b") and index + 1 < len(arguments):
            return arguments[index + 1]
        if each.startswith("--bundle="):
            return each.partition("=")[2]
    return None


def change_spec(bundle: str) -> str:
    """Change the container's config.json (the OCI runtime specification). Returns its cgroup's path, or "".

    Raises OSError and ValueError.
    """
    path = os.path.join(bundle, "config.json")
    with open(path, "rb") as file:
        spec = json.load(file)
    spec["process"]["oomScoreAdj"] = STEP_SCORE
    linux = spec.setdefault("linux", {})
    unified = linux.setdefault("resources", {}).setdefault("unified", {})
    unified["memory.oom.group"] = "1"
    with open(path + ".new", "w") as file:
        json.dump(spec, file)
    os.replace(path + ".new", path)
    cgroup = linux.get("cgroupsPath", "")
    return cgroup if isinstance(cgroup, str) else ""


def killed_for_memory(cgroup: str) -> bool:
    """Whether the kernel has killed a process of the step because memory ran out."""
    try:
        with open(f"{CGROUPS}/{cgroup.lstrip('/')}/memory.events") as file:
            return any(int(line.split()[1]) > 0 for line in file if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return False


def run_beside(runc: str, arguments: list[str], cgroup: str) -> int:
    """Run runc as a child, for the fork, and write why if memory ran out. Returns runc's exit code.

    --keep: otherwise runc removes the cgroup, and with it the count of kills, before this program could read it.
    """
    import ctypes  # some ms, which a step under moby's BuildKit need not wait for

    libc = ctypes.CDLL(None, use_errno=True)
    given = list(arguments)
    kept = "--keep" in given
    if not kept:
        given.insert(given.index("run") + 1, "--keep")
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(runc, [runc, *given])
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # runc itself is killed by the responder, if builds stall on memory, or by the kernel, if the machine has none.
    out_of_memory = code == -signal.SIGKILL or (code == KILLED and killed_for_memory(cgroup))
    if not kept:
        before = given[: given.index("run")]
        os.spawnv(os.P_WAIT, runc, [runc, *before, "delete", "--force", arguments[-1]])
    if out_of_memory:
        sys.stderr.write(OUT_OF_MEMORY)  # the step's own: its client reads it
    return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    """Change the step and become runc, or wait for it."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OWN_SCORE))
        with open(SETTINGS, "rb") as settings_file:
            settings = json.load(settings_file)
        own = os.path.join(settings["programs"], "buildkit-runc")
        runc = own if os.access(own, os.X_OK) else settings["runc"]
        bundle = bundle_of(arguments)
        cgroup = "" if bundle is None else change_spec(bundle)
        if bundle is not None and settings["flavour"] == "earthly" and "run" in arguments:
            return run_beside(runc, arguments, cgroup)
        os.execv(runc, [runc, *arguments])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        sys.stderr.write(f"bentpipe: cannot run this step: {type(exc).__name__}: {exc}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
