"""What `bentpipe why` prints of a record, whatever the record holds."""

from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.records.telling import explain, summary

RECORD: dict[str, object] = {
    "id": "1s6xaq-8x0a-szxkc",
    "host": "edge-1",
    "satellite": "acme/builder",
    "principal": "ci",
    "peer": "192.0.2.7:4711",
    "end": "refused",
    "reason": "refused: its satellite could not be used",
    "at": 1_795_684_330.041,
    "up_bytes": 412,
    "down_bytes": 391,
    "greeted_s": 0.004,
    "admitted_s": 0.004,
    "held_s": 0.005,
    "ended_s": 8.117,
    "woken_by": "dev",
    "status": "UNAVAILABLE",
    "error": "the satellite was not ready after 8 s",
}


def test_a_refusal_after_a_hold() -> None:
    assert "\n".join(explain(RECORD)) == (
        "connection 1s6xaq-8x0a-szxkc on edge-1\n"
        "  from 192.0.2.7:4711, of ci, for satellite acme/builder\n"
        "  accepted at 2026-11-26T09:12:10.041Z\n"
        "        +0.004 s  its first request was complete\n"
        "        +0.004 s  it was admitted as ci\n"
        "        +0.005 s  it was held: its satellite had to be woken, or looked at\n"
        "        +8.117 s  refused: its satellite could not be used with status UNAVAILABLE\n"
        "  reason: the satellite was not ready after 8 s\n"
        "  it waited 8.1 s for its satellite\n"
        "  bytes: 412 from the client, 391 to it"
    )


def test_one_line_of_a_list() -> None:
    assert summary(RECORD) == (
        "1s6xaq-8x0a-szxkc  2026-11-26T09:12:10.041Z  acme/builder  ci  refused UNAVAILABLE held 8.1 s 8.1 s"
    )


def test_a_connection_that_is_still_held() -> None:
    held = {name: value for name, value in RECORD.items() if name not in ("ended_s", "status", "error")} | {
        "open_s": 3.0
    }
    assert list(explain(held))[-1] == "        +3.000 s  it is still open"
    assert "held 3.0 s" in summary(held)


@given(st.dictionaries(st.sampled_from(sorted(RECORD)), st.text() | st.integers() | st.none() | st.floats()))
def test_nothing_in_a_record_writes_to_the_terminal(found: dict[str, object]) -> None:
    """Words of peers, of satellites and of clouds are among it."""
    record = {**RECORD, **found, "at": RECORD["at"]}
    assert all(line.isprintable() for line in (*explain(record), summary(record)))
