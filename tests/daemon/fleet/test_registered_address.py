"""Which addresses may be registered: the hostile ones are refused by whatever rule is the first to catch them."""

import ipaddress

import pytest

from bentpipe.daemon.errors import InvalidRequest, NotPermitted
from bentpipe.daemon.fleet.registered_address import check_allowed, checked_address, source_of
from bentpipe.daemon.model import Address

EVERYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
TENANTS = (ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("2001:db8::/64"))


@pytest.mark.parametrize(
    ("host", "source", "written"),
    [
        ("10.20.3.4", "10.20.3.4", "10.20.3.4"),
        ("", "10.20.3.4", "10.20.3.4"),
        ("::ffff:10.20.3.4", "10.20.3.4", "10.20.3.4"),
        ("10.20.3.4", "::ffff:10.20.3.4", "10.20.3.4"),
        ("2001:DB8:0::7", "2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_machine_may_register_its_own_address(host: str, source: str, written: str) -> None:
    assert checked_address(host, 8372, source_of(source), TENANTS, ()) == Address(written, 8372)


@pytest.mark.parametrize(
    "host",
    [
        "10.21.0.1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "240.0.0.1",
    ],
)
def test_no_network_makes_these_right(host: str) -> None:
    networks = TENANTS if host.startswith("10.") else EVERYWHERE
    with pytest.raises(NotPermitted, match="may not be registered"):
        checked_address(host, 8372, source_of(host), networks, ())
    with pytest.raises(NotPermitted):
        check_allowed(Address(host, 8372), networks, ())


def test_this_host_itself_needs_a_network_of_nothing_else() -> None:
    assert checked_address("127.0.0.1", 5000, source_of("127.0.0.1"), LOOPBACK, (6000,)).port == 5000
    assert checked_address("::1", 5000, source_of("::1"), LOOPBACK, ()).host == "::1"


def test_a_port_of_the_daemons_own_would_lead_back_into_it() -> None:
    with pytest.raises(NotPermitted, match="daemon's own"):
        checked_address("127.0.0.1", 8372, source_of("127.0.0.1"), LOOPBACK, (8372,))
    # Another machine's port of the same number is not the daemon's.
    assert checked_address("10.20.3.4", 8372, source_of("10.20.3.4"), TENANTS, (8372,)).port == 8372


def test_nobody_registers_the_address_of_another() -> None:
    with pytest.raises(NotPermitted, match=r"registered at 10\.20\.3\.5, and the call comes from 10\.20\.3\.4"):
        checked_address("10.20.3.5", 8372, source_of("10.20.3.4"), TENANTS, ())
    for source in (None, "unix", ""):
        with pytest.raises(NotPermitted, match="over the network"):
            source_of(source)


@pytest.mark.parametrize(
    "host", ["localhost", "satellite.internal", "10.20.3", "10.20.3.4:80", "0x0a140304", "10.20.3.4\n"]
)
def test_only_addresses_are_taken_since_names_can_lead_elsewhere_later(host: str) -> None:
    with pytest.raises(InvalidRequest, match="satellite_host"):
        checked_address(host, 8372, source_of("10.20.3.4"), TENANTS, ())


@pytest.mark.parametrize("port", [0, -1, 65_536, 2**31 - 1])
def test_a_port_must_be_one(port: int) -> None:
    with pytest.raises(InvalidRequest, match="satellite_port"):
        checked_address("10.20.3.4", port, source_of("10.20.3.4"), TENANTS, ())


def test_a_zone_is_not_taken() -> None:
    with pytest.raises(NotPermitted):
        checked_address("2001:db8::7%eth0", 8372, source_of("2001:db8::7"), TENANTS, ())
