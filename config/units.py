"""Parses what people write in a configuration: durations, sizes, listening addresses. ValueError says what fits."""

import ipaddress
import re

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SIZE = re.compile(r"(\d+)(KiB|MiB|GiB)")
_UNITS_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MAX_PORT = 65535


def parse_duration_s(value: object) -> float:
    """Seconds from "90s", "30m", "1h30m", "250ms" or a bare number of seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(value))
    raise ValueError(f'{value!r} is no duration: expected "250ms", "90s", "30m", "1h30m" or a number of seconds')


def parse_size_bytes(value: object) -> int:
    """Bytes from "512KiB", "256MiB", "1GiB" or a bare number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) * _UNITS_BYTES[match[2]]
    raise ValueError(f'{value!r} is no size: expected "512KiB", "256MiB", "1GiB" or a number of bytes')


def parse_address(value: object) -> tuple[str, int]:
    """(IP address, port) from "127.0.0.1:8372", "[::1]:8372", or ":8372" for every address; port 0 is any free one."""
    words = f'{value!r} is no address: expected "127.0.0.1:8372", "[::1]:8372" or ":8372"'
    if not isinstance(value, str):
        raise ValueError(words)
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise ValueError(words)
    host = host[1:-1] if bracketed else host
    if host:
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as exc:
            raise ValueError(words) from exc
        if (version == 6) is not bracketed:
            raise ValueError(words)
    return host, int(port)
