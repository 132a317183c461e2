"""The events that the greeting can report."""

import dataclasses
import enum

HeaderList = tuple[tuple[bytes, bytes], ...]


class PeerKind(enum.Enum):
    """The kind of client that does not speak HTTP/2."""

    HTTP1 = "http1"
    PROXY = "proxy"
    """A header of the PROXY protocol that is not expected here."""
    TLS = "tls"
    OTHER = "other"


@dataclasses.dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The first request's header block, decoded."""

    stream_id: int
    headers: HeaderList
    end_stream: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StreamReset:
    """RST_STREAM on a stream while held."""

    stream_id: int
    error_code: int


@dataclasses.dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The client is about to leave."""

    error_code: int


@dataclasses.dataclass(frozen=True, slots=True)
class PingAnswered:
    """A PING was answered, and is not in the transcript."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotHttp2:
    """The first bytes are not HTTP/2's connection preface."""

    kind: PeerKind


Event = RequestHeaders | StreamReset | GoAwayReceived | PingAnswered | NotHttp2
