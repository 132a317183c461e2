"""A corpus of PROXY protocol headers, by HAProxy's doc/proxy-protocol.txt and by what known senders write."""

import ipaddress
import struct

from bentpipe.proto.proxy_protocol import V1_MAX_BYTES, V2_SIGNATURE, ProxyRule, crc32c

LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UDP6, UNIX, UNIX_DGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
CRC32C, NOOP, SSL, AWS = 0x03, 0x04, 0x20, 0xEA
VPCE = b"\x01vpce-08d2bf15fac5001c9"
"""PP2_TYPE_AWS, subtype PP2_SUBTYPE_AWS_VPCE_ID (Elastic Load Balancing, "Proxy protocol")."""


def v2(command: int, family: int, block: bytes, size: int | None = None) -> bytes:
    return V2_SIGNATURE + bytes((command, family)) + struct.pack("!H", len(block) if size is None else size) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + struct.pack("!H", len(value)) + value


def address4(source: str = "192.0.2.7", port: int = 40_000) -> bytes:
    return ipaddress.ip_address(source).packed + bytes((192, 0, 2, 1)) + struct.pack("!HH", port, 8372)


def address6(source: str = "2001:db8::7", port: int = 40_000) -> bytes:
    packed = ipaddress.ip_address(source).packed
    return packed + ipaddress.ip_address("2001:db8::1").packed + struct.pack("!HH", port, 8372)


def checked(block: bytes) -> bytes:
    """With its CRC32C, as HAProxy's `proxy-v2-options crc32c` makes it."""
    blank = v2(PROXY, TCP4, block + tlv(CRC32C, bytes(4)))
    return blank[:-4] + struct.pack("!I", crc32c(blank))


WHO4, WHO6 = ("192.0.2.7", 40_000), ("2001:db8::7", 40_000)

VALID: dict[str, tuple[bytes, tuple[str, int] | None]] = {
    "v1 of the specification": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        ("192.168.0.1", 56324),
    ),
    "v1 TCP4 longest": (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535)),
    "v1 TCP4 shortest": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ("0.0.0.0", 0)),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 8372\r\n", WHO6),
    "v1 TCP6 longest": (
        b"PROXY TCP6 " + b" ".join([b":".join([b"FFFF"] * 8)] * 2) + b" 65535 65535\r\n",
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    ),
    "v1 TCP6 that carries IPv4": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 40000 8372\r\n", WHO4),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff::1 not an address\r\n", None),
    "v2 TCP4": (v2(PROXY, TCP4, address4()), WHO4),
    "v2 TCP6": (v2(PROXY, TCP6, address6()), WHO6),
    "v2 TCP6 that carries IPv4": (v2(PROXY, TCP6, address6("::ffff:192.0.2.7")), WHO4),
    "v2 TCP4 of an NLB": (v2(PROXY, TCP4, address4() + tlv(AWS, VPCE) + tlv(NOOP, bytes(9))), WHO4),
    "v2 CRC32C": (checked(address4() + tlv(AWS, VPCE)), WHO4),
    "v2 CRC32C alone": (checked(address4()), WHO4),
    "v2 with a client's certificate": (v2(PROXY, TCP4, address4() + tlv(SSL, b"\1" + bytes(2_000))), WHO4),
    "v2 an empty TLV": (v2(PROXY, TCP4, address4() + tlv(NOOP, b"")), WHO4),
    "v2 a TLV nobody knows": (v2(PROXY, TCP4, address4() + tlv(0xFF, b"?")), WHO4),
    "v2 LOCAL": (v2(LOCAL, UNSPEC, b""), None),
    "v2 LOCAL with addresses": (v2(LOCAL, TCP4, address4()), None),
    "v2 LOCAL with a block of anything": (v2(LOCAL, TCP6, b"\xff" * 5), None),
    "v2 UNSPEC": (v2(PROXY, UNSPEC, b""), None),
    "v2 UNSPEC with a block of anything": (v2(PROXY, UNSPEC, b"\xff" * 5), None),
    "v2 no transport": (v2(PROXY, 0x10, address4()), None),
    "v2 no family": (v2(PROXY, 0x01, b""), None),
    "v2 UDP4": (v2(PROXY, UDP4, address4()), None),
    "v2 UDP6": (v2(PROXY, UDP6, address6()), None),
    "v2 Unix": (v2(PROXY, UNIX, b"/run/client.sock".ljust(108, b"\0") + bytes(108)), None),
    "v2 Unix datagram": (v2(PROXY, UNIX_DGRAM, bytes(216) + tlv(NOOP, b"x")), None),
}
"""By name: the header, and the client whom it names; None where the proxy's own address counts."""

MALFORMED: dict[str, tuple[bytes, ProxyRule]] = {
    **{
        f"other: {data[:14]!r}": (data, ProxyRule.ABSENT)
        for data in (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"PROX ",
            b"proxy TCP4 ",
            b"\r\n\r\n\r\n",
            b"\0",
            b"\r\n\r\n\0\r\nQUIT\r",
        )
    },
    **{
        f"v1: {line.decode()!r}": (b"PROXY " + line + b"\r\n", ProxyRule.MALFORMED)
        for line in (
            b"",
            b" TCP4 192.0.2.7 192.0.2.1 1 2",
            b"TCP5 192.0.2.7 192.0.2.1 1 2",
            b"UDP4 192.0.2.7 192.0.2.1 1 2",
            b"tcp4 192.0.2.7 192.0.2.1 1 2",
            b"UNKNOWNS",
            b"TCP4",
            b"TCP4 192.0.2.7 192.0.2.1 1",
            b"TCP4 192.0.2.7 192.0.2.1 1 2 3",
            b"TCP4 192.0.2.7 192.0.2.1 1 2 ",
            b"TCP4  192.0.2.7 192.0.2.1 1 2",
            b"TCP4\t192.0.2.7 192.0.2.1 1 2",
            b"TCP4 192.0.2.7 192.0.2.1 1 65536",
            b"TCP4 192.0.2.7 192.0.2.1 01 2",
            b"TCP4 192.0.2.7 192.0.2.1 -1 2",
            b"TCP4 192.0.2.7 192.0.2.1 +1 2",
            b"TCP4 192.0.2.7 192.0.2.1 1 99999999999999999999",
            b"TCP4 192.0.2.07 192.0.2.1 1 2",
            b"TCP4 192.0.2 192.0.2.1 1 2",
            b"TCP4 192.0.2.256 192.0.2.1 1 2",
            b"TCP4 192.0.2.7 ::1 1 2",
            b"TCP4 ::1 ::1 1 2",
            b"TCP6 192.0.2.7 192.0.2.1 1 2",
            b"TCP6 fe80::1%eth0 ::1 1 2",
            b"TCP6 1::2::3 ::1 1 2",
            b"TCP6 12345::1 ::1 1 2",
            b"TCP4 192.0.2.7 192.0.2.1 1 2\n",
            b"TCP4 192.0.2.7 192.0.2.1 1 2\r",
            b"TCP4 192.0.2.7\n192.0.2.1 1 2",
        )
    },
    "v1 without an end": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2".ljust(V1_MAX_BYTES, b" "), ProxyRule.TOO_LONG),
    "v1 with a bare LF": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n".ljust(V1_MAX_BYTES, b"x"), ProxyRule.TOO_LONG),
    "v2 version 1": (v2(0x11, TCP4, address4()), ProxyRule.MALFORMED),
    "v2 version 3": (v2(0x31, TCP4, address4()), ProxyRule.MALFORMED),
    "v2 command 2": (v2(0x22, TCP4, address4()), ProxyRule.MALFORMED),
    "v2 family 4": (v2(PROXY, 0x41, bytes(300)), ProxyRule.MALFORMED),
    "v2 family 15 of LOCAL": (v2(LOCAL, 0xF1, b""), ProxyRule.MALFORMED),
    "v2 transport 3": (v2(PROXY, 0x13, address4()), ProxyRule.MALFORMED),
    "v2 shorter than its addresses": (v2(PROXY, TCP4, address4()[:-1]), ProxyRule.MALFORMED),
    "v2 TCP6 with an address of IPv4": (v2(PROXY, TCP6, address4()), ProxyRule.MALFORMED),
    "v2 Unix too short": (v2(PROXY, UNIX, bytes(215)), ProxyRule.MALFORMED),
    "v2 a TLV's half header": (v2(PROXY, TCP4, address4() + b"\x04\0"), ProxyRule.MALFORMED),
    "v2 a TLV past the end": (v2(PROXY, TCP4, address4() + b"\x04\0\x02x"), ProxyRule.MALFORMED),
    "v2 a checksum of three bytes": (v2(PROXY, TCP4, address4() + tlv(CRC32C, bytes(3))), ProxyRule.MALFORMED),
    "v2 two checksums": (v2(PROXY, TCP4, address4() + 2 * tlv(CRC32C, bytes(4))), ProxyRule.MALFORMED),
    "v2 a wrong checksum": (v2(PROXY, TCP4, address4() + tlv(CRC32C, bytes(4))), ProxyRule.CHECKSUM),
    "v2 the longest there could be": (v2(PROXY, TCP4, address4(), 65_535), ProxyRule.TOO_LONG),
}
"""By name: the bytes, and the rule that they break."""
