"""The greeting in C beside its oracle, proto/greeting.py: both are fed the same, and must agree after every step.

Of a refusal in C the error code and the limit are compared, and then what Python says after it has taken over. C may leave a
client to Python only for a reason of `may_leave`.
"""

import functools
from collections.abc import Callable, Iterable

from beds.fuzz.openings import Flight
from bentpipe.daemon.connections.native_greeting import NativeGreeting, make_limits
from bentpipe.native.greeting import STREAMS, GreetingReader
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import Event
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.frames import PREFACE
from bentpipe.proto.greeting import Greeting

LIMITS = make_limits()
Error = tuple[int, str, str | None]


def error_of(error: GreetingError) -> Error:
    """What a refusal consists of."""
    return error.error_code, error.message, error.limit


class Both:
    """One client."""

    def __init__(
        self, reader: GreetingReader | None = None, *, remember: bool = True, always_leaves: bool = False
    ) -> None:
        """`remember`: what is taken out of the transcript. `always_leaves`: C needs no reason to leave it to Python."""
        self.oracle = Greeting()
        self.other: NativeGreeting | Greeting = NativeGreeting(reader or GreetingReader(LIMITS))
        self.left = False
        """Whether C has left the client to Python."""
        self.refused: Error | None = None
        self._remembers = remember
        self._always_leaves = always_leaves
        self._said = b""
        self._steps: list[Callable[[Greeting], object]] = []
        """All that was done with the oracle."""
        self._compare()

    def _do(self, step: Callable[[NativeGreeting | Greeting], object]) -> None:
        self._steps.append(step)
        for each in (self.oracle, self.other):
            step(each)

    def announce(self, announced: Announcement) -> None:
        """Set the values of our SETTINGS."""
        self._do(lambda greeting: greeting.announce(announced))
        self._compare()

    def resume(self, mark: int) -> None:
        """Go on for a greeting with this mark."""
        self._do(lambda greeting: greeting.resume(mark))
        self._compare()

    def end_of_first_flight(self) -> None:
        """Nothing more can be read for now."""
        self._do(lambda greeting: greeting.end_of_first_flight())
        self._compare()

    def speak(self) -> None:
        """Say our SETTINGS."""
        self._do(lambda greeting: greeting.speak())
        self._compare()

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Feed both. Returns the events; after a refusal `refused` is set. Raises AssertionError where they differ."""
        self._said += data
        self._steps += [
            functools.partial(Greeting.receive_data, data=data[at : at + 1], now_s=now_s) for at in range(len(data))
        ]
        expected: list[Event] = []
        try:
            expected = self.oracle.receive_data(data, now_s)
        except GreetingError as exc:
            self.refused = error_of(exc)
        events, refused = self._other(data, now_s)
        assert refused == self.refused
        if refused is None:
            assert events == expected
        self._compare()
        return events

    def feed(self, flights: Iterable[Flight]) -> None:
        """Feed flights until the client is refused."""
        for flight in flights:
            if self.refused is None:
                self.receive(flight.data, flight.at_s)
            if flight.last and self.refused is None:
                self.end_of_first_flight()

    def may_leave(self) -> bool:
        """Whether C has a reason to leave the client to Python: it does not speak HTTP/2, or opens many streams."""
        start = self._said[: len(PREFACE)]
        return self._always_leaves or not PREFACE.startswith(start) or self._most_streams() >= STREAMS

    def _most_streams(self) -> int:
        """How many streams were open at once, at any byte: a flight may open many and reset them again."""
        greeting, most = Greeting(), 0
        for step in self._steps:
            step(greeting)
            most = max(most, len(greeting.open_streams))
        return most

    def _other(self, data: bytes, now_s: float) -> tuple[list[Event], Error | None]:
        """Feed the greeting in C, and go on in Python where it stops, as the edge does."""
        greeting, asked = self.other, None
        refused: Error | None = None
        try:
            events = greeting.receive_data(data, now_s)
            if isinstance(greeting, NativeGreeting) and greeting.stopped is not None:
                asked = greeting.stopped
                self.left = True
                self.other, rest = greeting.hand_over()
                events += self.other.receive_data(rest, now_s)
        except GreetingError as exc:
            events, refused = [], error_of(exc)
        if asked is not None and asked.error_code is not None:
            assert refused is not None, f"C alone refuses: {asked}"
            assert (asked.error_code, asked.limit) == (refused[0], refused[2])
        return events, refused

    def _compare(self) -> None:
        assert self.view(self.other) == self.view(self.oracle)
        if isinstance(self.other, Greeting) and self.refused is None:
            assert self.left
            assert self.may_leave(), "C has left a client to Python for no reason"

    def view(self, greeting: NativeGreeting | Greeting) -> tuple[object, ...]:
        """What the edge can see of it. The words are taken out."""
        common = (
            greeting.state,
            greeting.data_to_send(),
            greeting.last_stream,
            greeting.open_streams,
            greeting.leaving,
        )
        if self.refused is not None:
            return common
        return (
            *common,
            *(greeting.spoke, greeting.announced, greeting.awaiting_ack, greeting.transcript_bytes, greeting.opening),
            *(greeting.kept_bytes, greeting.transcript_full, greeting.asks_nothing, greeting.unframed_bytes),
            *(greeting.mark, greeting.take_removed() if self._remembers else ()),
        )
