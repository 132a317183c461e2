"""Two sides joined by a channel that keeps whole messages: the model-based test of batching and acknowledgement."""

import collections

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bentpipe.daemon.planes.batching import Batching, QueueFull
from bentpipe.daemon.planes.bounds import DATA_BYTES, MESSAGE_BYTES, QUEUE_BYTES, UNSEEN_MESSAGES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import BytesRecord, PingRecord, Record, SayFlag, SayRecord
from bentpipe.daemon.planes.table import MAGIC, MESSAGE_HEADER, Plane


def ping(number: int) -> PingRecord:
    return PingRecord(0, number)


class TwoSides(RuleBasedStateMachine):
    """Either side queues, sends or reads at any moment, in any order; the channel takes few messages, as a socket does."""

    DEPTH = 4

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Batching(Plane.DATA), Batching(Plane.CONTROL))
        self.channels: tuple[collections.deque[bytes], ...] = (collections.deque(), collections.deque())
        self.queued: tuple[list[Record], ...] = ([], [])
        self.arrived: tuple[list[Record], ...] = ([], [])
        self.number = 0

    @rule(side=st.integers(0, 1), size=st.sampled_from([0, 1, 300, DATA_BYTES]))
    def queue(self, side: int, size: int) -> None:
        self.number += 1
        data = bytes([self.number % 256]) * size
        record: Record = (
            SayRecord(9, SayFlag.NONE, self.number, data) if side == 0 else BytesRecord(9, self.number, False, data)
        )
        self.sides[side].queue(record)
        self.queued[side].append(record)

    @rule(side=st.integers(0, 1))
    def send(self, side: int) -> None:
        self._send(side)

    def _send(self, side: int) -> bool:
        message = self.sides[side].next_message()
        if message is None or len(self.channels[side]) == self.DEPTH:
            return False
        assert 0 < len(message) <= MESSAGE_BYTES
        self.channels[side].append(message)
        self.sides[side].sent(message)
        return True

    def _can_read(self) -> bool:
        return any(self.channels)

    @precondition(_can_read)
    @rule(side=st.integers(0, 1))
    def read(self, side: int) -> None:
        if self.channels[side]:
            self.arrived[side].extend(self.sides[1 - side].receive(self.channels[side].popleft()))

    @invariant()
    def nothing_is_lost_or_reordered(self) -> None:
        for queued, arrived in zip(self.queued, self.arrived, strict=True):
            assert queued[: len(arrived)] == arrived

    def teardown(self) -> None:
        """If both sides go on, all arrives, and then both are silent: no acknowledgement answers an acknowledgement."""
        for _ in range(1_000):
            moved = False
            for side in (0, 1):
                moved |= self._send(side)
                while self.channels[side]:
                    moved = True
                    self.arrived[side].extend(self.sides[1 - side].receive(self.channels[side].popleft()))
            if not moved:
                break
        else:
            raise AssertionError("the two sides never come to rest")
        assert self.queued == self.arrived


TwoSides.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTwoSides = TwoSides.TestCase


def test_a_storm_of_records_makes_few_messages() -> None:
    side = Batching(Plane.DATA)
    messages = 0
    for number in range(1_000):
        side.queue(ping(number))
        if (message := side.next_message()) is not None:
            side.sent(message)
            messages += 1
    assert messages == 1  # the first went alone; the others wait until it was seen
    side.receive(MESSAGE_HEADER.pack(MAGIC, 1))
    while (message := side.next_message()) is not None:
        side.sent(message)
        messages += 1
    assert messages == 2
    assert side.queued_bytes == 0


def test_full_messages_go_without_a_wait_up_to_a_bound() -> None:
    side = Batching(Plane.DATA)
    for number in range(4 * UNSEEN_MESSAGES):
        side.queue(SayRecord(9, SayFlag.NONE, number, bytes(DATA_BYTES)))
    messages = 0
    while (message := side.next_message()) is not None:
        side.sent(message)
        messages += 1
    assert messages == UNSEEN_MESSAGES


def test_what_a_peer_does_not_read_is_bounded() -> None:
    side = Batching(Plane.DATA)
    said = SayRecord(9, SayFlag.NONE, 0, bytes(DATA_BYTES))
    while side.queued_bytes <= QUEUE_BYTES - 2 * DATA_BYTES:
        side.queue(said)
    side.queue(said)
    with pytest.raises(QueueFull):
        side.queue(said)
    assert side.queued_bytes <= QUEUE_BYTES


def test_a_peer_that_has_seen_what_was_never_sent_is_refused() -> None:
    with pytest.raises(ProtocolBroken, match="never sent"):
        Batching(Plane.DATA).receive(MESSAGE_HEADER.pack(MAGIC, 1))


def test_what_waits_is_flushed_at_the_end_whatever_the_peer_has_seen() -> None:
    side = Batching(Plane.DATA)
    for number in (1, 2):
        side.queue(ping(number))
        message = side.next_message(flush=True)
        assert message is not None
        side.sent(message)
    assert side.queued_bytes == 0
