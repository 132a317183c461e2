"""The PROXY protocol's header, versions 1 and 2: who the client of a proxied connection is.

Pure. Source: HAProxy, "The PROXY protocol, versions 1 & 2" (doc/proxy-protocol.txt); § means its sections. The edge knows
whether a peer may and must send such a header. This module must never guess that.
"""

import dataclasses
import enum
import ipaddress

V1_PREFIX = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PREFIXES = (V1_PREFIX, V2_SIGNATURE)
"""Every header begins with one of these, and nothing else that comes to our ports does."""
V1_MAX_BYTES = 107
"""The longest line, its CRLF included (§2.1)."""
V2_FIXED_BYTES = 16
V2_MAX_BYTES = 16_384
"""A whole header of version 2. The protocol allows 65,551 bytes. Proxies add some dozens (AWS: a VPC endpoint's id), and at
most a client's certificate. HAProxy has the same bound."""

_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1
_ADDRESS_BYTES = {0: 0, 1: 12, 2: 36, 3: 216}
"""By address family: unspecified, IPv4, IPv6, Unix (§2.2)."""
_LAST_TRANSPORT = 2
_TLV_HEADER_BYTES = 3
_CRC32C_TYPE, _CRC32C_BYTES = 0x03, 4
_MAX_PORT = 65_535


class ProxyRule(enum.Enum):
    """Why bytes are not an acceptable header. The edge counts these."""

    ABSENT = "absent"
    """Something else began the connection."""
    MALFORMED = "malformed"
    TOO_LONG = "too-long"
    CHECKSUM = "checksum"


class ProxyHeaderError(Exception):
    """The bytes are not an acceptable header; `str()` says why."""

    def __init__(self, rule: ProxyRule, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyHeader:
    """One complete header."""

    size_bytes: int
    """The length of the header itself. The bytes after it belong to the connection."""
    source: tuple[str, int] | None
    """The client's IP address in canonical form, and its port. None if the proxy's own address counts: for its health
    checks (LOCAL), and for clients that have no TCP address."""


def parse_header(data: bytes) -> ProxyHeader | None:
    """Read a header at the beginning of `data`. None if `data` is only a part of a header, and more must come.

    Raises ProxyHeaderError, at the latest when the header should be complete.
    """
    if data.startswith(V2_SIGNATURE):
        return _parse_v2(data)
    if data.startswith(V1_PREFIX):
        return _parse_v1(data)
    if any(prefix.startswith(data) for prefix in PREFIXES):
        return None
    raise ProxyHeaderError(ProxyRule.ABSENT, "the connection does not begin with a PROXY protocol header")


def _malformed(message: str) -> ProxyHeaderError:
    return ProxyHeaderError(ProxyRule.MALFORMED, message)


# -- version 1 ---------------------------------------------------------------------------------------------------------


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_MAX_BYTES)
    if end < 0:
        if len(data) >= V1_MAX_BYTES:
            raise ProxyHeaderError(ProxyRule.TOO_LONG, f"version 1: no CRLF in the first {V1_MAX_BYTES} bytes")
        return None
    size = end + 2
    kind, _, rest = data[len(V1_PREFIX) : end].partition(b" ")
    if kind == b"UNKNOWN":
        return ProxyHeader(size, None)  # the rest of the line must be ignored
    if kind not in (b"TCP4", b"TCP6"):
        raise _malformed("version 1: neither TCP4, TCP6 nor UNKNOWN")
    fields = rest.split(b" ")
    if len(fields) != 4:
        raise _malformed("version 1: not two addresses and two ports")
    source, _ = _v1_address(fields[0], kind), _v1_address(fields[1], kind)
    port, _ = _v1_port(fields[2]), _v1_port(fields[3])
    return ProxyHeader(size, (source, port))


def _v1_address(field: bytes, kind: bytes) -> str:
    try:
        text = field.decode("ascii")
        # ipaddress accepts a zone ("fe80::1%eth0"), and the grammar does not.
        if "%" in text:
            raise ValueError(text)
        return canonical(ipaddress.IPv4Address(text) if kind == b"TCP4" else ipaddress.IPv6Address(text))
    except ValueError as exc:
        raise _malformed(f"version 1: no address of {kind.decode()}") from exc


def _v1_port(field: bytes) -> int:
    if not field.isdigit() or (len(field) > 1 and field.startswith(b"0")) or int(field) > _MAX_PORT:
        raise _malformed("version 1: no port")
    return int(field)


def canonical(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Write an address. An IPv4 address inside IPv6 (::ffff:192.0.2.1) is the same client as the IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


# -- version 2 ---------------------------------------------------------------------------------------------------------


def _parse_v2(data: bytes) -> ProxyHeader | None:
    """Refuse what the fixed part alone shows to be wrong, before the rest has come."""
    at = len(V2_SIGNATURE)
    if len(data) > at and data[at] not in (_LOCAL, _PROXY):
        raise _malformed(f"version 2: version and command 0x{data[at]:02x}")
    if len(data) > at + 1 and (data[at + 1] >> 4 not in _ADDRESS_BYTES or data[at + 1] & 0xF > _LAST_TRANSPORT):
        raise _malformed(f"version 2: family and transport 0x{data[at + 1]:02x}")
    if len(data) < V2_FIXED_BYTES:
        return None
    size = V2_FIXED_BYTES + int.from_bytes(data[14:16])
    if size > V2_MAX_BYTES:
        raise ProxyHeaderError(ProxyRule.TOO_LONG, f"version 2: {size} bytes, over {V2_MAX_BYTES}")
    local, family = data[at] == _LOCAL, data[at + 1] >> 4
    addressed = V2_FIXED_BYTES + _ADDRESS_BYTES[family]
    if not local and size < addressed:
        raise _malformed("version 2: shorter than its addresses")
    if len(data) < size:
        return None
    header = data[:size]
    if local or not family:
        return ProxyHeader(size, None)  # §2.2: the whole block must be discarded, and it is unknown where TLVs begin
    _check_tlvs(header, addressed)
    return ProxyHeader(size, _v2_source(header, family))


def _v2_source(header: bytes, family: int) -> tuple[str, int] | None:
    if header[13] & 0xF != _STREAM:
        return None  # this connection is TCP: the address of a datagram or of an unknown transport is not that of its client
    at = V2_FIXED_BYTES
    if family == 1:
        return str(ipaddress.IPv4Address(header[at : at + 4])), int.from_bytes(header[at + 8 : at + 10])
    if family == 2:
        return canonical(ipaddress.IPv6Address(header[at : at + 16])), int.from_bytes(header[at + 32 : at + 34])
    return None


def _check_tlvs(header: bytes, at: int) -> None:
    """Skip the TLVs within their bounds; a checksum among them must be right (§2.2.3)."""
    checksum_at: int | None = None
    while at < len(header):
        value = at + _TLV_HEADER_BYTES
        if value > len(header) or value + int.from_bytes(header[at + 1 : value]) > len(header):
            raise _malformed("version 2: a TLV is longer than the header")
        size = int.from_bytes(header[at + 1 : value])
        if header[at] == _CRC32C_TYPE:
            if size != _CRC32C_BYTES or checksum_at is not None:
                raise _malformed("version 2: not one CRC32C of four bytes")
            checksum_at = value
        at = value + size
    if checksum_at is not None:
        end = checksum_at + _CRC32C_BYTES
        if crc32c(header[:checksum_at] + bytes(_CRC32C_BYTES) + header[end:]) != int.from_bytes(
            header[checksum_at:end]
        ):
            raise ProxyHeaderError(ProxyRule.CHECKSUM, "version 2: the CRC32C is wrong")


def _crc_table() -> tuple[int, ...]:
    polynomial = 0x82F63B78  # RFC 4960 appendix B, the bits reversed
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Compute the CRC32C of RFC 4960 appendix B: some 0.1 µs for each byte, and few proxies send one."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
