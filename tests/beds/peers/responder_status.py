"""Answers of a responder, as the tests tell them: a healthy satellite, and what differs from it."""

from bentpipe.proto import responder_pb2 as pb

BOOT_ID = "5b4e1e0e-9d3c-4f4e-8d67-2f7e3f1f3a10"
YOUNG = pb.Look(age_ms=900)


def status(
    *,
    boot_id: str = BOOT_ID,
    uptime_ms: int = 60_000,
    running: int | None = 0,
    steps: int = 0,
    cpu_s: float = 1.0,
    memory_percent: float = 0.0,
    cpu_percent: float = 0.0,
    kills: pb.Kills | None = None,
    free: float = 0.5,
    old_connections: int = 0,
    oldest_build_s: float = 0.0,
) -> pb.Status:
    """A satellite of two CPUs. `running` None: BuildKit does not answer."""
    found = pb.Status(version="test", boot_id=boot_id, uptime_ms=uptime_ms, cpus=2)
    found.machine.look.CopyFrom(YOUNG)
    found.machine.pressure.cpu.some.avg10_percent = cpu_percent
    found.machine.pressure.memory.some.avg10_percent = memory_percent
    found.machine.pressure.io.some.avg10_percent = 0
    found.machine.memory_total_bytes = 8 << 30
    found.machine.memory_available_bytes = 4 << 30
    found.builds.look.CopyFrom(YOUNG)
    found.builds.cpu_usage_us = int(cpu_s * 1e6)
    found.builds.cpu_limit_percent = 190
    found.builds.steps = steps
    if running is None:
        found.buildkit.look.error = "no answer in 2 s"
    else:
        found.buildkit.look.CopyFrom(YOUNG)
        found.buildkit.running_count = running
        for number in range(min(running, 64)):
            found.buildkit.running.add(ref=f"ref{number}", age_ms=int(oldest_build_s * 1e3))
    found.disk.look.CopyFrom(YOUNG)
    found.disk.total_bytes, found.disk.available_bytes = 100, int(100 * free)
    found.disk.total_inodes, found.disk.available_inodes = 100, 90
    found.kills.CopyFrom(kills or pb.Kills(look=YOUNG))
    found.network.look.CopyFrom(YOUNG)
    found.network.under_1h = old_connections
    return found
