"""A scripted control plane that has told a data plane all that a client needs to be admitted, and what such clients say."""

import hashlib

import hpack

from beds.planes.scripted import OPENING, PlaneBed
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.proto.frames import ACK, FrameType, frame

TOKEN = "secret"
KEY = SatelliteKey("acme", "one")
MACHINE = "box.internal"
"""The name that the certificate of a satellite with TLS must have."""
STREAMS, WINDOW = 7, 1000
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)
END_HEADERS = 0x4


def request(
    token: str = TOKEN, name: str = "one", path: str = "/acme.Echo/Echo", more: tuple[tuple[str, str], ...] = ()
) -> bytes:
    fields = (
        *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
        *(("satellite_org", "acme"), ("satellite_name", name), ("satellite_token", token)),
        *more,
    )
    return frame(FrameType.HEADERS, END_HEADERS, 1, hpack.Encoder().encode(fields))


WHOLE = OPENING + request()
OURS = frame(FrameType.SETTINGS, 0, 0, b"\0\3" + STREAMS.to_bytes(4, "big") + b"\0\4" + WINDOW.to_bytes(4, "big"))
THEIRS = frame(FrameType.SETTINGS, 0, 0, b"\0\3" + (50).to_bytes(4, "big") + b"\0\x09" + (1).to_bytes(4, "big"))
CHANGED = frame(FrameType.SETTINGS, 0, 0, b"\0\3" + (50).to_bytes(4, "big") + b"\0\4" + (65535).to_bytes(4, "big"))


class AdmittingControl:
    """A control plane that sits and has told everything that a client needs."""

    def __init__(self, bed: PlaneBed, **gate: int) -> None:
        self.bed = bed
        self.control = bed.control(take_over=True)
        self.generation = 0
        self.gate_number = 0
        self.tell_tokens(TOKEN)
        self.credit(8)
        self.open_gate(**gate, trust="")

    def tell_tokens(self, *tokens: str, expires_us: int = 0) -> None:
        self.generation += 1
        for token in tokens:
            digest = hashlib.sha256(token.encode()).digest()
            self.control.send(s.GrantRecord(r.LINK_ID, expires_us, digest, "alice", "acme/one", "token:laptop"))
        self.control.send(s.GrantsRecord(r.LINK_ID, self.generation, len(tokens), STREAMS, WINDOW))
        assert self.control.expect(s.GrantedRecord).generation == self.generation

    def credit(self, allowed: int) -> s.CreditedRecord:
        self.control.send(s.CreditRecord(r.LINK_ID, allowed, "alice"))
        return self.control.expect(s.CreditedRecord)

    def open_gate(self, *, port: int = 0, valid_ms: int = 60_000, uid: int = -1, trust: str = "") -> None:
        self.gate_number += 1
        until_us = s.boot_us() + 1000 * valid_ms
        gate = s.GateRecord(
            *(self.gate_number, port or self.bed.satellite_port, until_us, uid >= 0, max(uid, 0)),
            *("acme", "one", "127.0.0.1", trust, MACHINE if trust else ""),
        )
        self.control.send(gate)
        self.control.ping()

    def shut_gate(self) -> None:
        self.control.send(s.ShutGateRecord(self.gate_number))
        assert self.control.expect(s.GatedRecord).id == self.gate_number
