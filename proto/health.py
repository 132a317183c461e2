"""grpc.health.v1 on the wire: its two messages in protobuf, and gRPC's length prefix (doc/health-checking.md)."""

import enum

SERVICE_PATH = "/grpc.health.v1.Health/"
HEALTH_PATHS = (SERVICE_PATH.encode(), b"/AWS.ALB/")
"""What the paths of health checks begin with. AWS' Application Load Balancer checks gRPC targets by `/AWS.ALB/healthcheck`,
a method that no server has, and by default takes UNIMPLEMENTED for health: the answer needs no knowledge of a satellite."""
PREFIX_BYTES = 5
"""gRPC's Length-Prefixed-Message: a compressed flag and four bytes of length (doc/PROTOCOL-HTTP2.md)."""
SERVICE_FIELD = 0x0A
"""HealthCheckRequest.service: field 1, length-delimited."""
MAX_SERVICE_BYTES = 127
"""The longest name in our questions: its length is then one byte of varint."""
STATUS_FIELD = 0x08
"""HealthCheckResponse.status: field 1, varint."""


class ServingStatus(enum.IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


CUT_OFF = "the message is cut off"


class HealthError(Exception):
    """The request does not consist of one HealthCheckRequest; `str()` is for the client."""


def encode_response(status: ServingStatus) -> bytes:
    """One message, with its prefix. Zero is a default, which protobuf leaves out."""
    message = bytes((STATUS_FIELD, status)) if status else b""
    return b"\0" + len(message).to_bytes(4) + message


def encode_request(service: str) -> bytes:
    """One message, with its prefix."""
    name = service.encode()
    if len(name) > MAX_SERVICE_BYTES:
        raise ValueError("the name of the service is too long")
    message = bytes((SERVICE_FIELD, len(name))) + name if name else b""
    return b"\0" + len(message).to_bytes(4) + message


def decode_request(body: bytes) -> str:
    """Read the name of the service from the one message of a request. Raises HealthError."""
    if len(body) < PREFIX_BYTES or len(body) - PREFIX_BYTES != int.from_bytes(body[1:PREFIX_BYTES]):
        raise HealthError("the request must be exactly one message")
    if body[0]:
        raise HealthError("the message is compressed, and no compression was agreed on")
    rest, service = body[PREFIX_BYTES:], b""
    while rest:
        # Any other field comes from a later version, and we do not know its meaning.
        if rest[0] != SERVICE_FIELD:
            raise HealthError("the message is not a HealthCheckRequest")
        length, rest = _varint(rest[1:])
        if length > len(rest):
            raise HealthError(CUT_OFF)
        service, rest = rest[:length], rest[length:]
    try:
        return service.decode()
    except UnicodeDecodeError as exc:
        raise HealthError("the name of the service is not UTF-8") from exc


def _varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for at, byte in enumerate(data[:4]):
        value |= (byte & 0x7F) << 7 * at
        if not byte & 0x80:
            return value, data[at + 1 :]
    raise HealthError(CUT_OFF)
