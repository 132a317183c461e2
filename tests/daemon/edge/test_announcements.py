"""What is announced to whom: the least of what was heard, one satellite's own where it is known, never what shuts out."""

from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.edge.announcements import LEAST, MOST, Announcements
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.first_settings import UNLIMITED_STREAMS, Announcement
from bentpipe.proto.payloads import INITIAL_WINDOW, LARGEST_WINDOW

ONE, TWO, NEW = (SatelliteKey("acme", name) for name in ("one", "two", "new"))
heard = st.builds(Announcement, st.integers(0, UNLIMITED_STREAMS), st.integers(0, LARGEST_WINDOW))


def test_nothing_is_known_at_the_start() -> None:
    assert Announcements().announce(None) == LEAST
    assert Announcements().announce(ONE) == LEAST


def test_the_least_for_strangers_and_its_own_for_a_client_that_names_it() -> None:
    book = Announcements()
    book.hear(ONE, Announcement(10, 65_536))
    book.hear(TWO, Announcement(UNLIMITED_STREAMS, 16_384))
    assert book.announce(None) == book.announce(NEW) == Announcement(10, 16_384)
    assert book.announce(ONE) == Announcement(10, INITIAL_WINDOW)
    assert book.announce(TWO) == Announcement(100, 16_384)


def test_what_is_heard_anew_counts() -> None:
    book = Announcements()
    book.hear(ONE, Announcement(1, 0))
    book.hear(ONE, Announcement())
    assert book.announce(None) == MOST


def test_no_satellite_shuts_everybody_out() -> None:
    book = Announcements()
    book.hear(ONE, Announcement(0, 0))
    assert book.announce(None).streams == 1


@given(st.lists(st.tuples(st.sampled_from((ONE, TWO, NEW)), heard), min_size=1, max_size=12))
def test_no_satellite_is_promised_more_than_it_said(said: list[tuple[SatelliteKey, Announcement]]) -> None:
    book = Announcements()
    for key, announcement in said:
        book.hear(key, announcement)
    for key, last in dict(said).items():
        for announced in (book.announce(key), book.announce(None)):
            assert announced.streams <= max(1, last.streams)
            assert announced.window_bytes <= last.window_bytes
            assert LEAST.streams <= announced.streams <= MOST.streams
