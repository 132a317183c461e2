"""The one error that the readers of this package can raise, and its codes."""

import enum


class ErrorCode(enum.IntEnum):
    """Error codes of RFC 9113 §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class GreetingError(Exception):
    """The client broke RFC 9113 or a limit. If it was a limit, `limit` names the constant of proto/limits.py."""

    def __init__(self, error_code: ErrorCode, message: str, limit: str | None = None) -> None:
        super().__init__(f"{error_code.name}: {message}")
        self.error_code = error_code
        self.message = message
        self.limit = limit


def over(limit: str) -> GreetingError:
    """Make the error for input over a limit."""
    return GreetingError(ErrorCode.ENHANCE_YOUR_CALM, f"over the limit {limit}", limit)
