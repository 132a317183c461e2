"""Prefixes, and which stranger is evicted."""

import collections
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.connections.strangers import Path, Strangers, prefix_of


@dataclasses.dataclass(eq=False)
class Somebody:
    path: Path
    since: float = 0.0
    held_bytes: int = 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("unix", "unix", True),
        ("unix", "192.0.2.1", False),
    ],
)
def test_who_is_one(one: str, other: str, same: bool) -> None:
    assert (prefix_of(one) == prefix_of(other)) is same


def test_an_ipv6_path_goes_from_coarse_to_fine() -> None:
    one, other = prefix_of("2001:db8:0:0100::1"), prefix_of("2001:db8:0:01ff::1")
    assert len(one) == 3
    assert one[:2] == other[:2], "one /56"
    assert one[2] != other[2]


HOSTS = [f"192.0.2.{n}" for n in range(4)] + [
    f"2001:db8:{site:x}:{net:x}::1" for site in range(3) for net in (0, 1, 256)
]


@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(0, 5), st.booleans()), max_size=120))
def test_counts_are_those_of_a_list(steps: list[tuple[str, int, bool]]) -> None:
    strangers: Strangers[Somebody] = Strangers()
    there: list[Somebody] = []
    for number, (host, size, comes) in enumerate(steps):
        if comes or not there:
            there.append(Somebody(prefix_of(host), float(number), size))
            strangers.add(there[-1])
        elif size % 2:
            gone = there.pop(size % len(there))
            strangers.remove(gone)
        else:
            grown = there[size % len(there)]
            strangers.grew(grown, size)
            grown.held_bytes += size
        assert len(strangers) == len(there)
        assert strangers.held_bytes == sum(each.held_bytes for each in there)
        for path in {each.path for each in there}:
            same = [each for each in there if each.path == path]
            assert strangers.count_of(path) == len(same)
            assert strangers.bytes_of(path) == sum(each.held_bytes for each in same)
            assert strangers.oldest_of(path) is same[0]
        oldest = strangers.oldest_of_the_most_crowded()
        if not there:
            assert oldest is None
            assert strangers.most_expensive() is None
            continue
        assert oldest is not None
        coarse = collections.Counter(each.path[0] for each in there)
        assert coarse[oldest.path[0]] == max(coarse.values())
        fine = collections.Counter(each.path for each in there if each.path[:-1] == oldest.path[:-1])
        assert len(oldest.path) == 1 or fine[oldest.path] == max(fine.values())
        expensive = strangers.most_expensive()
        assert expensive is not None
        held: collections.Counter[str] = collections.Counter()
        for each in there:
            held[each.path[0]] += each.held_bytes
        assert held[expensive.path[0]] == max(held.values())
    for each in there:
        strangers.remove(each)
    assert (len(strangers), strangers.held_bytes) == (0, 0)


def test_many_prefixes_of_one_site_weigh_no_more_than_one() -> None:
    strangers: Strangers[Somebody] = Strangers()
    for number in range(3):
        strangers.add(Somebody(prefix_of("192.0.2.1"), float(number)))
    attacker = [Somebody(prefix_of(f"2001:db8:1:{n:x}::1")) for n in range(4)]
    for each in attacker:
        strangers.add(each)
    assert strangers.oldest_of_the_most_crowded() in attacker
