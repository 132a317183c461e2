"""A daemon inside the test's own process, and raw exchanges with it."""

import hashlib
import sys
from pathlib import Path

import hpack
import trio
import trustme

from beds.hosts.form import write_in_form
from beds.quoted import without_id
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto.frames import FrameType

TOKEN = "bp_test"
PLAIN, TLS, MUTUAL = 0, 1, 2
"""Indices of the daemon's ports."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SATELLITE_DOMAIN = "sat.example"
DEADLINE_S = 15.0


def write_config(
    folder: Path, authority: trustme.CA, clients: trustme.CA, *, limits: str, boot_s: float = 0, sections: str = ""
) -> Path:
    """Three ports (plain, TLS, TLS with client certificates) and the satellites acme/sat and acme/other."""
    server = authority.issue_cert("localhost", "127.0.0.1", f"*.acme.{SATELLITE_DOMAIN}")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (folder / "key.pem").write_bytes(server.private_key_pem.bytes())
    (folder / "clients.pem").write_bytes(clients.cert_pem.bytes())
    tls = (
        f'certificate = "{folder / "cert.pem"}"\nkey = "{folder / "key.pem"}"\nsatellite_domain = "{SATELLITE_DOMAIN}"'
    )
    satellites = "".join(
        f"""
[[satellite]]
org = "acme"
name = "{name}"
[satellite.process]
command = [
    "{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}", "--boot", "{boot_s}", {arguments}
]
"""
        for name, arguments in (("sat", ""), ("other", ""), ("broken", '"--fail"'))
    )
    path = folder / "bentpipe.toml"
    text = f"""
{sections}
[limits]
{limits}
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
{tls}
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
{tls}
client_ca = "{folder / "clients.pem"}"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[[certificate]]
name = "dev"
san = "EMAIL:dev@example.com"
grants = ["acme/sat"]
{satellites}
"""
    write_in_form(path, text, folder)
    return path


async def exchange(daemon: Daemon, port: int, sent: bytes, *, close: bool = False) -> bytes:
    """Connect, send, and read to the end of the stream (a reset counts as one)."""
    stream = await trio.open_tcp_stream(*daemon.addresses[port])
    received = b""
    with trio.fail_after(DEADLINE_S):
        async with stream:
            try:
                await stream.send_all(sent)
                if close:
                    await stream.send_eof()
                async for chunk in stream:
                    received += chunk
            except trio.BrokenResourceError:
                pass
    return received


async def counted(daemon: Daemon, outcome: Outcome, times: int = 1) -> None:
    """Wait until the outcome was counted that often."""
    with trio.fail_after(DEADLINE_S):
        while daemon.counters.ended[outcome] < times:
            await trio.sleep(0.01)


def frames_of(answer: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of every complete frame."""
    found = []
    at = 0
    while at + 9 <= len(answer):
        end = at + 9 + int.from_bytes(answer[at : at + 3])
        found.append(
            (answer[at + 3], answer[at + 4], int.from_bytes(answer[at + 5 : at + 9]) & 0x7FFFFFFF, answer[at + 9 : end])
        )
        at = end
    return found


def said(answer: bytes) -> bytes:
    """The words in header blocks and in GOAWAY."""
    decoder, words = hpack.Decoder(), b""
    for kind, _, _, payload in frames_of(answer):
        if kind == FrameType.HEADERS:
            words += b"\n".join(bytes(value) for _, value in decoder.decode(payload, raw=True))
        elif kind == FrameType.GOAWAY:
            words += payload[8:]
    return words


def goaway_of(answer: bytes) -> tuple[int, bytes]:
    """The error code and the words, without the connection's id, of the last frame, which must be GOAWAY."""
    kind, _, _, payload = frames_of(answer)[-1]
    assert kind == FrameType.GOAWAY
    return int.from_bytes(payload[4:8]), without_id(payload[8:].decode()).encode()
