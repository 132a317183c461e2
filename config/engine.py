"""The threads that move bytes: how many, how soon they run, and what they ask of the kernel."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bentpipe.config.base import DurationS, Section, SizeBytes

NOTSENT_LOWAT_LEAST = 16 << 10
"""The payload of one record of TLS (RFC 8446 section 5.1): with less the kernel would take a part of it at a time."""


class EngineSection(Section):
    """The data plane's threads."""

    threads: int = Field(default=0, ge=0, le=256)
    """0: one per core."""
    splice: Literal["off", "auto", "always"] = "auto"
    ktls: Literal["off", "auto"] = "auto"
    """auto: the kernel does TLS if the kernel and OpenSSL can, and a self-test at start-up passes. Otherwise TLS stays in
    userspace."""
    priority: Literal["normal", "slice", "realtime"] = "slice"
    """How soon the threads run beside others that want their cores. What the kernel refuses is said in the log."""
    busy_poll_s: DurationS = Field(default=0.0, ge=0, le=0.001, alias="busy_poll")
    """The longest time for which a thread polls before it sleeps; 0: it never polls. A thread polls only while events come
    soon after one another (`native/src/busy_poll.c`). For hosts with more cores than `threads`."""
    notsent_lowat: SizeBytes = Field(default=0, ge=0, le=1 << 30)
    """TCP_NOTSENT_LOWAT of clients' sockets (tcp(7)): how much the kernel takes ahead of what it can send. 0: the system's
    value, net.ipv4.tcp_notsent_lowat."""
    idle_timeout_s: DurationS = Field(default=0.0, ge=0, alias="idle_timeout")
    """0: a silent connection lives for ever (dead peers are found by keepalive)."""
    half_closed_timeout_s: DurationS = Field(default=60.0, ge=0, alias="half_closed_timeout")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.busy_poll_s and self.priority == "realtime":
            raise ValueError('give busy_poll or priority = "realtime", not both: such a thread would keep its core')
        if 0 < self.notsent_lowat < NOTSENT_LOWAT_LEAST:
            raise ValueError(f"notsent_lowat is 0 or at least {NOTSENT_LOWAT_LEAST} bytes, one record of TLS")
        return self
