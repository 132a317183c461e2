"""The PROXY protocol's header: the specification's own examples and rules, every cut of it, and any other bytes."""

import ipaddress
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.hosts.proxy_headers import MALFORMED, PROXY, TCP4, VALID, address4, tlv, v2
from bentpipe.proto.proxy_protocol import (
    V1_MAX_BYTES,
    V2_MAX_BYTES,
    V2_SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    ProxyRule,
    crc32c,
    parse_header,
)

ADDRESSES4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
ADDRESSES6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
PORTS = st.integers(0, 65535)


@pytest.mark.parametrize("name", VALID)
def test_valid_ones_in_every_cut(name: str) -> None:
    """Every shorter piece waits for more, whatever follows stays out, and the client is the same."""
    header, source = VALID[name]
    for size in range(len(header)):
        assert parse_header(header[:size]) is None
    for behind in (b"", b"\x16", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n", header):
        assert parse_header(header + behind) == ProxyHeader(len(header), source)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_ones(name: str) -> None:
    data, rule = MALFORMED[name]
    with pytest.raises(ProxyHeaderError) as error:
        parse_header(data)
    assert error.value.rule is rule


def test_lengths_at_their_limits() -> None:
    longest = b"PROXY UNKNOWN " + b"f" * (V1_MAX_BYTES - 16) + b"\r\n"
    assert len(longest) == V1_MAX_BYTES
    assert parse_header(longest) == ProxyHeader(V1_MAX_BYTES, None)
    assert parse_header(longest[:-1]) is None
    with pytest.raises(ProxyHeaderError):
        parse_header(longest[:-2] + b"f\r\n")
    room = V2_MAX_BYTES - 16 - 12 - 3
    largest = v2(PROXY, TCP4, address4() + tlv(0xEA, bytes(room)))
    assert len(largest) == V2_MAX_BYTES
    assert parse_header(largest) is not None
    with pytest.raises(ProxyHeaderError, match=f"over {V2_MAX_BYTES}") as error:
        parse_header(v2(PROXY, TCP4, address4() + tlv(0xEA, bytes(room + 1)))[:16])
    assert error.value.rule is ProxyRule.TOO_LONG, "told by its first 16 bytes"


def test_the_checksum_is_that_of_rfc_3720() -> None:
    """RFC 3720 appendix B.4: bytes of zero, of ones, and rising."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_no_flipped_bit_under_a_checksum_makes_another_client() -> None:
    header, source = VALID["v2 CRC32C"]
    for bit in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            parsed = parse_header(bytes(flipped))
        except ProxyHeaderError:
            continue
        # It may be longer now, a LOCAL one, or have another TLV in the checksum's place.
        assert parsed is None or parsed.source in (None, source)


@given(source=ADDRESSES4, destination=ADDRESSES4, ports=st.tuples(PORTS, PORTS), behind=st.binary(max_size=40))
def test_ipv4_round_trip(source: IPv4Address, destination: IPv4Address, ports: tuple[int, int], behind: bytes) -> None:
    line = f"PROXY TCP4 {source} {destination} {ports[0]} {ports[1]}\r\n".encode()
    binary = v2(PROXY, TCP4, source.packed + destination.packed + struct.pack("!HH", *ports))
    for header in (line, binary):
        assert parse_header(header + behind) == ProxyHeader(len(header), (str(source), ports[0]))


@given(source=ADDRESSES6, ports=st.tuples(PORTS, PORTS), exploded=st.booleans())
def test_ipv6_round_trip(source: IPv6Address, ports: tuple[int, int], exploded: bool) -> None:
    text = source.exploded.upper() if exploded else str(source)
    line = f"PROXY TCP6 {text} ::1 {ports[0]} {ports[1]}\r\n".encode()
    binary = v2(PROXY, 0x21, source.packed + bytes(16) + struct.pack("!HH", *ports))
    expected = str(source.ipv4_mapped or source)
    for header in (line, binary):
        assert parse_header(header) == ProxyHeader(len(header), (expected, ports[0]))


@given(
    start=st.sampled_from((b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21\x11")),
    rest=st.binary(max_size=300),
    cut=st.integers(0, 300),
)
def test_any_bytes_are_a_header_or_too_few_or_refused_however_they_are_cut(start: bytes, rest: bytes, cut: int) -> None:
    data = start + rest

    def outcome(data: bytes) -> ProxyHeader | ProxyRule | None:
        try:
            return parse_header(data)
        except ProxyHeaderError as exc:
            return exc.rule

    whole, part = outcome(data), outcome(data[:cut])
    if isinstance(whole, ProxyHeader):
        assert 15 <= whole.size_bytes <= len(data)
    if part is not None:
        assert part == whole, "what was said of the beginning holds for all of it"
    if whole is None:
        assert len(data) < V2_MAX_BYTES
        assert part is None
