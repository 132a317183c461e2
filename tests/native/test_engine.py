"""The engine between real sockets: byte-exact both ways, every end with its reason, nothing left open."""

import array
import fcntl
import gc
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from bentpipe.native.engine import Ended, EndReason, Engine, EngineOptions, Leg

QUIET_S = 1.0
QUIET_DEADLINE_S = 15.0
HELD_BYTES = 64 << 10
"""More than a kernel makes room for when it packs what a peer has not read, and less than one buffer takes."""
BLOCKED_LOOKS = 80
QUIET_TURNS = 20
"""Both threads have a tick a second."""


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


class Wire:
    """A client and a satellite with the engine between them."""

    def __init__(self, engine: Engine) -> None:
        self.client, near = pair()
        far, self.satellite = pair()
        self.to_satellite = far.fileno()
        """The engine's socket, to look at."""
        self.id = engine.splice(Leg(near.detach(), None), Leg(far.detach(), None))

    def close(self) -> None:
        self.client.close()
        self.satellite.close()


def ended(engine: Engine) -> Ended:
    select.select([engine.event_fd], [], [], 20)
    [end] = engine.take_ended()
    return end


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture(params=["off", "auto", "always"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    gc.collect()  # else what earlier tests have left could be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    made = Engine(EngineOptions(threads=2, splice=request.param))
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [1, 4096, 100_001, 20_000_000])
def test_bytes_both_ways(engine: Engine, size: int) -> None:
    wire = Wire(engine)
    data = os.urandom(size)

    def send(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    def receive(sock: socket.socket) -> bytes:
        received = bytearray()
        while chunk := sock.recv(1 << 16):
            received += chunk
        return bytes(received)

    for source, sink in ((wire.client, wire.satellite), (wire.satellite, wire.client)):
        sender = threading.Thread(target=send, args=(source,))
        sender.start()
        assert receive(sink) == data
        sender.join()
    end = ended(engine)
    assert end.reason is EndReason.CLOSED
    assert (end.counters.client_to_satellite_bytes, end.counters.satellite_to_client_bytes) == (size, size)
    wire.close()


def test_client_reset_goes_through(engine: Engine) -> None:
    wire = Wire(engine)
    wire.client.sendall(b"x")
    assert wire.satellite.recv(1) == b"x"
    wire.satellite.sendall(b"y")  # carries the ACK of x: behind bytes not acknowledged a FIN would come, not a RST
    assert wire.client.recv(1) == b"y"
    reset(wire.client)
    assert ended(engine).reason is EndReason.CLIENT_RESET
    with pytest.raises(ConnectionResetError):
        wire.satellite.recv(1)
    wire.close()


def test_satellite_reset_goes_through(engine: Engine) -> None:
    wire = Wire(engine)
    reset(wire.satellite)
    assert ended(engine).reason is EndReason.SATELLITE_RESET
    with pytest.raises(ConnectionResetError):
        wire.client.recv(1)
    wire.close()


def test_the_last_words_before_a_reset_arrive(engine: Engine) -> None:
    """A server that answers and closes while the client still sends: RFC 9113 §8.1 in practice."""
    words = os.urandom(20_000)  # within the first window: more would die in its own send queue, engine or not
    for _ in range(20):
        wire = Wire(engine)
        wire.client.sendall(b"x" * 1000)
        while len(wire.satellite.recv(1000, socket.MSG_PEEK)) < 1000:
            pass
        wire.satellite.sendall(words)
        wire.satellite.close()  # with unread bytes: the kernel sends RST
        received = bytearray()
        try:
            while chunk := wire.client.recv(1 << 16):
                received += chunk
        except ConnectionResetError:
            pass
        assert received == words
        assert ended(engine).reason is EndReason.SATELLITE_RESET
        wire.close()


def test_half_close_leaves_the_other_direction(engine: Engine) -> None:
    wire = Wire(engine)
    wire.client.shutdown(socket.SHUT_WR)
    assert wire.satellite.recv(1) == b""
    wire.satellite.sendall(b"still here")
    assert wire.client.recv(100) == b"still here"
    wire.satellite.close()
    assert wire.client.recv(1) == b""
    assert ended(engine).reason is EndReason.CLOSED
    wire.close()


def test_abort_resets_both(engine: Engine) -> None:
    wire = Wire(engine)
    engine.abort(wire.id)
    assert ended(engine).reason is EndReason.ABORTED
    for sock in (wire.client, wire.satellite):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wire.close()


def test_a_stalled_reader_stops_its_own_sender_only(engine: Engine) -> None:
    stalled, busy = Wire(engine), Wire(engine)
    stalled.client.setblocking(False)

    def fill() -> None:
        while True:
            stalled.client.send(bytes(1 << 16))

    with pytest.raises(BlockingIOError):
        fill()
    for _ in range(100):
        busy.client.sendall(b"ping")
        assert busy.satellite.recv(4) == b"ping"
    stalled.close()
    busy.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (EngineOptions(threads=1, idle_timeout_s=1), EndReason.IDLE_TIMEOUT),
        (EngineOptions(threads=1, half_closed_timeout_s=1), EndReason.HALF_CLOSED_TIMEOUT),
    ],
)
def test_timeouts(options: EngineOptions, reason: EndReason) -> None:
    engine = Engine(options)
    wire = Wire(engine)
    if reason is EndReason.HALF_CLOSED_TIMEOUT:
        wire.client.shutdown(socket.SHUT_WR)
    assert ended(engine).reason is reason
    wire.close()
    engine.close()


def test_closing_with_live_connections_leaves_nothing_open(engine: Engine) -> None:
    wires = [Wire(engine) for _ in range(50)]
    engine.close()
    for wire in wires:
        wire.close()


def test_a_live_connection_is_given_back_without_a_byte_lost(engine: Engine) -> None:
    """While both sides stream: what the engine took arrives, what it left is in the sockets, and another engine goes on."""
    wire = Wire(engine)
    data = os.urandom(8_000_000)
    received: dict[socket.socket, bytearray] = {wire.client: bytearray(), wire.satellite: bytearray()}

    def receive(sock: socket.socket) -> None:
        while chunk := sock.recv(1 << 16):
            received[sock] += chunk

    def send(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    ends = (wire.client, wire.satellite)
    threads = [threading.Thread(target=work, args=(sock,)) for work in (receive, send) for sock in ends]
    for thread in threads:
        thread.start()
    splice_id, moved = wire.id, 0
    for _ in range(5):
        engine.give_back(splice_id)
        end = ended(engine)
        moved += end.counters.client_to_satellite_bytes
        if end.sockets is None:  # it was faster
            assert end.reason is EndReason.CLOSED
            break
        client, satellite = end.sockets
        splice_id = engine.splice(Leg(client, None), Leg(satellite, None))
    else:
        end = ended(engine)
        moved += end.counters.client_to_satellite_bytes
    for thread in threads:
        thread.join()
    assert end.reason is EndReason.CLOSED
    assert received[wire.client] == received[wire.satellite] == data
    assert moved == len(data)
    wire.close()


def test_a_given_back_connection_that_nobody_wants_is_closed(engine: Engine) -> None:
    wire = Wire(engine)
    engine.give_back(wire.id)
    end = ended(engine)
    assert end.reason is EndReason.GIVEN_BACK
    assert end.sockets
    wire.client.sendall(b"still open")
    assert os.read(end.sockets[0], 100) == b"still open"
    for fd in end.sockets:
        os.close(fd)
    wire.close()


def fill(engine: Engine, wire: Wire) -> None:
    """Send from the client until the engine holds what it cannot pass on; nothing is left on the client's side."""
    # Once a program has set their size, the kernel lets buffers grow no more: else it would take what was held, later on.
    with socket.socket(fileno=os.dup(wire.to_satellite)) as to_satellite:
        to_satellite.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    wire.satellite.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sent = looks = 0
    while looks < BLOCKED_LOOKS:
        unsent, unread = array.array("i", [0]), array.array("i", [0])
        fcntl.ioctl(wire.client, termios.TIOCOUTQ, unsent)
        fcntl.ioctl(wire.to_satellite, termios.TIOCOUTQ, unread)
        writable = select.select([], [wire.to_satellite], [], 0)[1]
        held = sent - engine.counters(wire.id).client_to_satellite_bytes
        if not unsent[0] and held < HELD_BYTES:
            wire.client.sendall(bytes(1 << 15))
            sent += 1 << 15
        # A thread that has not come to run yet holds bytes too, but its socket to the satellite takes more.
        looks = looks + 1 if held >= HELD_BYTES and unread[0] and not writable and not unsent[0] else 0
        time.sleep(0.01)


def turns(engine: Engine) -> int:
    return sum(each.turns for each in engine.thread_turns())


def wait_quiet(engine: Engine) -> None:
    """Wait until its threads rest for a second. A thread that is kept busy never does, however small its share of a core."""
    end = time.monotonic() + QUIET_DEADLINE_S
    while True:
        before, cpu_s = turns(engine), sum(engine.thread_cpu_s())
        time.sleep(QUIET_S)
        more, used_s = turns(engine) - before, sum(engine.thread_cpu_s()) - cpu_s
        if more <= QUIET_TURNS and used_s < QUIET_S / 4:
            return
        assert time.monotonic() < end, f"{more} turns and {used_s:.3f} s of CPU time in the last second"


def test_a_hang_up_behind_queued_data_does_not_keep_a_thread_busy(engine: Engine) -> None:
    """The satellite has said FIN and reads nothing; the client's own FIN waits behind what the satellite does not read."""
    wire = Wire(engine)
    wire.satellite.shutdown(socket.SHUT_WR)
    assert wire.client.recv(1) == b""
    fill(engine, wire)
    wire.client.shutdown(socket.SHUT_WR)
    wait_quiet(engine)
    engine.abort(wire.id)
    assert ended(engine).reason is EndReason.ABORTED
    wire.close()


def test_a_reset_of_a_leg_that_nobody_reads_is_noticed_at_once(engine: Engine) -> None:
    """What it sent waits for the other, so it is not read; its end is not to wait for that."""
    wire = Wire(engine)
    fill(engine, wire)
    reset(wire.client)
    assert ended(engine).reason is EndReason.CLIENT_RESET
    wire.close()


def test_turns_are_counted_and_end(engine: Engine) -> None:
    wire = Wire(engine)
    wire.client.sendall(b"x")
    assert wire.satellite.recv(1) == b"x"
    time.sleep(0.1)
    seen = engine.thread_turns()
    assert len(seen) == 2
    assert any(each.turns for each in seen)
    assert all(each.running_s == 0 for each in seen)
    assert max(each.longest_s for each in seen) > 0
    wire.close()
