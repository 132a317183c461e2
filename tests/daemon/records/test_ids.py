"""Ids of connections: their form, their order, and what people make of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.records.ids import EPOCH_S, ID_CHARS, IdMaker, NotAnId, host_part, parse_id, quote, time_of


@given(st.lists(st.floats(EPOCH_S, EPOCH_S + (1 << 30) - 1), min_size=2, max_size=20))
def test_ids_sort_by_the_second_of_the_accept(times: list[float]) -> None:
    clock = iter(sorted(times))
    maker = IdMaker("edge-1", lambda: next(clock))
    made = [maker.make() for _ in times]
    assert [time_of(each) for each in made] == [float(int(at)) for at in sorted(times)]
    assert sorted(each.split("-")[0] for each in made) == [each.split("-")[0] for each in made]
    assert len(set(made)) == len(made)
    assert {len(each) for each in made} == {ID_CHARS}


def test_two_hosts_and_two_runs_of_one_host_do_not_meet() -> None:
    makers = [IdMaker(host, lambda: EPOCH_S + 5.5) for host in ("edge-1", "edge-2", "edge-1")]
    made = [maker.make() for maker in makers for _ in range(1_000)]
    assert len(set(made)) == 3_000
    assert {each.split("-")[1] for each in made} == {host_part("edge-1"), host_part("edge-2")}


def test_the_number_begins_again_without_a_gap_in_the_form() -> None:
    maker = IdMaker("edge-1")
    maker._number = (1 << 25) - 2
    assert [maker.make().split("-")[2] for _ in range(3)] == ["zzzzz", "00000", "00001"]


def test_an_id_is_read_as_people_write_it() -> None:
    made = IdMaker("edge-1", lambda: EPOCH_S + 1.0).make()
    for written in (made, made.upper(), f" {made}\n", made.replace("-", ""), made.replace("0", "O").replace("1", "l")):
        assert parse_id(written) == made


@pytest.mark.parametrize(
    "text", ["", "1t3kq0-7h2m", "1t3kq0-7h2m-00b4xx", "1t3kq0-7h2m-00b4u", "../../etc/passwd", "é" * 15]
)
def test_what_is_not_an_id_is_refused_in_words(text: str) -> None:
    with pytest.raises(NotAnId, match="is not a connection's id; an id looks like"):
        parse_id(text)


def test_a_quoted_id_can_be_read_again() -> None:
    made = IdMaker("edge-1").make()
    assert parse_id(quote(made).strip(" ()").removeprefix("connection ")) == made
