"""Parses what people write in a configuration:

durations, sizes, addresses, days, hours. A ValueError says what is expected.
"""

import ipaddress
import re

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS_S = {"us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|s|m|h|d))+")
_SIZE = re.compile(r"(\d+)(KiB|MiB|GiB)")
_UNITS_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MAX_PORT = 65535
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
_HOUR_MINUTES, _DAY_MINUTES = 60, 24 * 60


def parse_duration_s(value: object) -> float:
    """Seconds from "90s", "30m", "1h30m", "250ms", "200us" or a bare number of seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(value))
    raise ValueError(
        f'{value!r} is not a valid duration: expected "250ms", "90s", "30m", "1h30m" or a number of seconds'
    )


def parse_size_bytes(value: object) -> int:
    """Bytes from "512KiB", "256MiB", "1GiB" or a bare number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) * _UNITS_BYTES[match[2]]
    raise ValueError(f'{value!r} is not a valid size: expected "512KiB", "256MiB", "1GiB" or a number of bytes')


def parse_address(value: object) -> tuple[str, int]:
    """(IP address, port) from "127.0.0.1:8372", "[::1]:8372", or ":8372" for every address; port 0 is any free one."""
    words = f'{value!r} is not a valid address: expected "127.0.0.1:8372", "[::1]:8372" or ":8372"'
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


def parse_networks(value: object) -> tuple[Network, ...]:
    """IP networks from ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(
            f'{value!r} is not a valid list of networks: expected, for example, ["10.0.0.0/8", "fd00::/8"]'
        )
    return tuple(each if isinstance(each, Network) else _parse_network(each) for each in value)


def _parse_network(text: object) -> Network:
    words = f'{text!r} is not a valid network: expected "10.0.0.0/8", "fd00::/8" or an address'
    if not isinstance(text, str):
        raise ValueError(words)
    try:
        network = ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValueError(f"{words} ({exc})") from exc
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{text!r} is IPv4 written as IPv6: write the IPv4 network")
    return network


def parse_weekdays(value: object) -> frozenset[int]:
    """Weekdays, 0 for Monday, from "mon-fri", "sat,sun" or "fri-mon,wed"."""
    if isinstance(value, frozenset):
        return value
    days: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else [""]:
        first, dash, last = part.strip().partition("-")
        if first not in _WEEKDAYS or (dash and last not in _WEEKDAYS):
            raise ValueError(
                f'{value!r} is not a valid list of weekdays: expected, for example, "mon-fri" or "sat,sun"'
            )
        begin, end = _WEEKDAYS.index(first), _WEEKDAYS.index(last or first)
        days.update((begin + offset) % 7 for offset in range((end - begin) % 7 + 1))
    return frozenset(days)


def parse_hours(value: object) -> tuple[int, int]:
    """Minutes past midnight of beginning and end, from "08:00-18:30" or "22:00-06:00" (over midnight)."""
    words = (
        f'{value!r} is not a valid span of hours: expected, for example, "08:00-18:30", ending at "24:00" at the latest'
    )
    match = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(words)
    hours = [int(number) for number in match.groups()]
    begin, end = (hour * _HOUR_MINUTES + minute for hour, minute in (hours[:2], hours[2:]))
    if max(hours[1], hours[3]) >= _HOUR_MINUTES or begin >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(words)
    return begin, end
