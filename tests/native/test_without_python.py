"""Python is not on the data path: its only thread, Trio's, sits in a C call that keeps the GIL, and bytes flow.

No clock is read: the call that blocks Python is the one that receives, and it returns when more than all buffers on the
way can hold has come through the engine.
"""

import ctypes
import socket
import struct
import subprocess
import sys
from typing import get_args

import pytest
import trio

from bentpipe.native.engine import Engine, EngineOptions, Leg, Splice

STREAM_BYTES = 64 << 20
"""More than four sockets and the engine hold: tcp_rmem and tcp_wmem end at 6 and 4 MiB."""
DEADLINE_S = 60
SENDER = f"import socket; socket.socket(fileno=0).sendall(bytes({STREAM_BYTES}))"

libc_that_keeps_the_gil = ctypes.PyDLL(None, use_errno=True)


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.mark.parametrize("source", ["client", "satellite"])
@pytest.mark.parametrize("splice", get_args(Splice))
async def test_bytes_flow_while_trio_is_blocked_and_the_gil_is_held(source: str, splice: Splice) -> None:
    engine = Engine(EngineOptions(threads=1, splice=splice))
    client, near = pair()
    far, satellite = pair()
    engine.splice(Leg(near.detach(), None), Leg(far.detach(), None))
    origin, sink = (client, satellite) if source == "client" else (satellite, client)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", DEADLINE_S, 0))
    received = ctypes.create_string_buffer(STREAM_BYTES)
    await trio.lowlevel.checkpoint()
    sender = subprocess.Popen([sys.executable, "-c", SENDER], stdin=origin.fileno())
    count = libc_that_keeps_the_gil.recv(
        ctypes.c_int(sink.fileno()), received, ctypes.c_size_t(STREAM_BYTES), ctypes.c_int(socket.MSG_WAITALL)
    )
    assert count == STREAM_BYTES
    assert sender.wait() == 0
    for sock in (client, satellite):
        sock.close()
    engine.close()
