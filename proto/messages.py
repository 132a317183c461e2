"""gRPC's Length-Prefixed-Message: a compressed flag, four bytes of length, the message (doc/PROTOCOL-HTTP2.md). Sans-IO."""

from bentpipe.proto.grpc_status import GrpcStatus

PREFIX_BYTES = 5
CONTENT_TYPE = b"application/grpc"


def is_grpc(content_type: bytes) -> bool:
    """Whether a request's content-type says gRPC, with any codec: "application/grpc", perhaps with "+proto" or ";…".

    "application/grpc-web" is another protocol, and its clients could not read our answers.
    """
    kind, rest = content_type[: len(CONTENT_TYPE)], content_type[len(CONTENT_TYPE) :]
    return kind.lower() == CONTENT_TYPE and (not rest or rest[:1] in b"+;")


class MessageError(Exception):
    """The stream of messages cannot be read on; `status` and `str()` are for the client."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def encode_message(message: bytes) -> bytes:
    """One message with its prefix, uncompressed."""
    return b"\0" + len(message).to_bytes(4) + message


class MessageReader:
    """Cuts a request's body into messages. Keeps the incomplete message at hand, `most_bytes` and its prefix at most."""

    def __init__(self, most_bytes: int, limit: str) -> None:
        """`limit` is the name of the bound, which the client hears when it is passed."""
        self._most_bytes = most_bytes
        self._limit = limit
        self._buffer = bytearray()

    @property
    def kept_bytes(self) -> int:
        """What is kept of an incomplete message."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[bytes]:
        """Read on. Returns the messages that are complete now. Raises MessageError, after which it is of no more use."""
        self._buffer += data
        messages: list[bytes] = []
        while len(self._buffer) >= PREFIX_BYTES:
            if self._buffer[0]:
                raise MessageError(GrpcStatus.UNIMPLEMENTED, "the message is compressed: only identity is understood")
            size = int.from_bytes(self._buffer[1:PREFIX_BYTES])
            if size > self._most_bytes:
                raise MessageError(GrpcStatus.RESOURCE_EXHAUSTED, f"over the limit {self._limit}")
            end = PREFIX_BYTES + size
            if len(self._buffer) < end:
                break
            messages.append(bytes(self._buffer[PREFIX_BYTES:end]))
            del self._buffer[:end]
        return messages

    def end(self) -> None:
        """The body is complete. Raises MessageError if it was cut off in a message."""
        if self._buffer:
            raise MessageError(GrpcStatus.INTERNAL, "the request ends in the middle of a message")
