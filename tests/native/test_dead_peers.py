"""A peer that is gone without a word: found by TCP_USER_TIMEOUT if something is on its way to it, by keepalive if not.

Real sockets in a network namespace of their own, where one peer's address becomes a black hole. The engine's two minutes
are checked as the sockets have them, and then shortened on the same sockets.
"""

import ctypes
import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable

import pytest

from bentpipe.native.engine import Ended, EndReason, Engine, EngineOptions, Leg

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
DEADLINE_S = 30
NEAR, GONE = "127.0.0.1", "127.0.0.2"

AS_SET = {
    socket.TCP_NODELAY: 1,
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 6,
    socket.TCP_USER_TIMEOUT: 120_000,
}
SHORTENED = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 1, socket.TCP_USER_TIMEOUT: 500}


def in_a_network_of_its_own(work: Callable[[], None]) -> None:
    """Run `work` in a thread that has a network namespace; skips, with the reason, if that is not available."""
    failed: list[BaseException] = []
    libc = ctypes.CDLL(None, use_errno=True)

    def run() -> None:
        try:
            if libc.unshare(CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "no network namespace for this user")
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
            work()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed and isinstance(failed[0], PermissionError):
        pytest.skip(f"dead peers were NOT tested: {failed[0]}")
    if failed:
        raise failed[0]


def pair(address: str) -> tuple[socket.socket, socket.socket]:
    """Connect from `address`; the second one is the engine's."""
    with socket.create_server((NEAR, 0)) as server:
        peer = socket.create_connection(server.getsockname(), source_address=(address, 0))
        leg, _ = server.accept()
    return peer, leg


def tune(leg_fd: int) -> None:
    """Check what the engine has set on its socket, then make it impatient."""
    with socket.socket(fileno=os.dup(leg_fd)) as leg:
        assert leg.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert {name: leg.getsockopt(socket.IPPROTO_TCP, name) for name in AS_SET} == AS_SET
        for name, value in SHORTENED.items():
            leg.setsockopt(socket.IPPROTO_TCP, name, value)
        leg.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # again: it restarts the timer with the new values


def ended(engine: Engine) -> Ended:
    assert select.select([engine.event_fd], [], [], DEADLINE_S)[0], "nobody noticed"
    [end] = engine.take_ended()
    return end


@pytest.mark.skipif(shutil.which("ip") is None, reason="dead peers were NOT tested: no ip program")
@pytest.mark.parametrize("silent", [False, True], ids=["something on its way", "silent"])
@pytest.mark.parametrize(
    ("dead", "reason"), [("client", EndReason.CLIENT_TIMEOUT), ("satellite", EndReason.SATELLITE_TIMEOUT)]
)
def test_a_dead_peer_is_noticed_and_named(dead: str, reason: EndReason, silent: bool) -> None:
    def run() -> None:
        engine = Engine(EngineOptions(threads=1))
        client, client_leg = pair(GONE if dead == "client" else NEAR)
        satellite, satellite_leg = pair(GONE if dead == "satellite" else NEAR)
        legs = client_leg.detach(), satellite_leg.detach()
        engine.splice(Leg(legs[0], None), Leg(legs[1], None))
        alive, gone = (satellite, client) if dead == "client" else (client, satellite)
        alive.sendall(b"hello")
        assert gone.recv(5) == b"hello"
        for leg in legs:
            tune(leg)
        subprocess.run(["ip", "route", "add", "blackhole", GONE, "table", "local"], check=True)
        if not silent:
            alive.sendall(b"are you there?")
        assert ended(engine).reason is reason
        with pytest.raises(ConnectionResetError):
            alive.recv(1)
        for sock in (client, satellite):
            sock.close()
        engine.close()

    in_a_network_of_its_own(run)
