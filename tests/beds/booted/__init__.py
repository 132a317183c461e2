"""A Debian whose first process is systemd, in namespaces of this machine: units run in it as they run on a host.

It needs root and cgroup v2, which may be mounted beside v1: then it has no cpu, memory, io and pids controllers. Tests
of these use `beds.guest`, which is a machine of its own but an emulated one. No product code imports this.
"""
