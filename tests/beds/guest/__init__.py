"""A guest with a kernel, a systemd and a cgroup v2 of its own, and in it a satellite that builds misuse.

QEMU runs it by software emulation, so it needs no KVM. `agent.py` and `storm.c` run inside the guest, everything else on the
host. No product code imports this.
"""
