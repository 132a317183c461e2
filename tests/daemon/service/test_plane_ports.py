"""Which listener of the configuration a data plane's listener is, whatever the order of either."""

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.dataplane.handover import place_number
from bentpipe.daemon.planes.records import LISTENER_COUNTERS
from bentpipe.daemon.service.plane_ports import UNKNOWN, PlanePorts


def section(address: str | None = None, systemd: str | None = None, *, api: bool = False) -> ListenerSection:
    return ListenerSection.model_validate({"address": address, "systemd": systemd, "api": api})


def told(*sections: ListenerSection) -> dict[str, int]:
    """COUNTERS of a data plane with these listeners."""
    return {f"{LISTENER_COUNTERS}{index}": place_number(each) for index, each in enumerate(sections)} | {"clients": 1}


def serves_api(ports: PlanePorts, counters: dict[str, int], listener: int) -> bool:
    found = ports.find(counters, listener)
    assert found is not None
    return found.serves_api


ONE, TWO = section("127.0.0.1:1", api=True), section("127.0.0.1:2")


def test_another_order_changes_no_listener() -> None:
    ports = PlanePorts([TWO, ONE])
    assert serves_api(ports, told(ONE, TWO), 0) is True
    assert serves_api(ports, told(ONE, TWO), 1) is False


def test_one_tcp_port_at_two_addresses() -> None:
    outside, inside = section("192.0.2.1:443"), section("127.0.0.1:443", api=True)
    ports = PlanePorts([inside, outside])
    assert serves_api(ports, told(outside, inside), 0) is False
    assert serves_api(ports, told(outside, inside), 1) is True


def test_sockets_of_systemd_are_known_by_their_name() -> None:
    a, b = section(systemd="a", api=True), section(systemd="b")
    ports = PlanePorts([b, a])
    assert serves_api(ports, told(a, b), 0) is True
    assert serves_api(ports, told(a, b), 1) is False


def test_several_at_port_0_keep_their_order() -> None:
    first, second = section("127.0.0.1:0", api=True), section("127.0.0.1:0")
    ports = PlanePorts([ONE, first, second])
    assert serves_api(ports, told(first, ONE, second), 0) is True
    assert serves_api(ports, told(first, ONE, second), 2) is False


def test_a_place_that_is_configured_no_more_gets_neither_the_api_nor_a_domain() -> None:
    ports = PlanePorts([ONE])
    assert ports.find(told(TWO, ONE), 0) is UNKNOWN
    assert serves_api(ports, told(TWO, ONE), 1) is True
    assert (
        PlanePorts([section("127.0.0.1:0", api=True)]).find(told(section("127.0.0.1:0"), section("127.0.0.1:0")), 1)
        is UNKNOWN
    )


def test_a_listener_that_the_plane_does_not_have() -> None:
    assert PlanePorts([ONE, TWO]).find(told(ONE), 1) is None


def test_an_older_plane_tells_no_places() -> None:
    ports = PlanePorts([ONE, TWO])
    assert serves_api(ports, {"clients": 1}, 0) is True
    assert serves_api(ports, {}, 1) is False
    assert ports.find({}, 2) is None
