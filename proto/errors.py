"""The one error that the wire's readers can raise."""

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
    """The client broke RFC 9113 or a limit of ours; `limit` names the constant of proto/limits.py, if it was one."""

    def __init__(self, error_code: ErrorCode, message: str, limit: str | None = None) -> None:
        super().__init__(f"{error_code.name}: {message}")
        self.error_code = error_code
        self.message = message
        self.limit = limit


def over(limit: str) -> GreetingError:
    """The error for what is over a limit of ours."""
    return GreetingError(ErrorCode.ENHANCE_YOUR_CALM, f"over the limit {limit}", limit)
