"""The kept bytes of a client, against the simplest model: a list of single bytes with their offsets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.transcript import MOST_DROPS, PlaneTranscript

STEP = st.one_of(
    st.tuples(st.just("append"), st.binary(max_size=30), st.none()),
    st.tuples(st.just("drop"), st.integers(0, 150), st.integers(0, 20)),
    st.tuples(st.just("forget"), st.integers(0, 150), st.none()),
    st.tuples(st.just("again"), st.none(), st.none()),
)


@given(st.lists(STEP, max_size=40), st.integers(0, 200), st.integers(0, 200))
def test_it_keeps_what_the_model_keeps(steps: list[tuple[str, object, object]], begin: int, end: int) -> None:
    transcript, model, came = PlaneTranscript(), {}, 0
    for step in steps:
        match step:
            case ("append", bytes(data), _):
                model.update({came + at: byte for at, byte in enumerate(data)})
                came += len(data)
                transcript.append(data)
            case ("drop", int(at), int(size)):
                wanted = range(at, at + size)
                if all(each in model for each in wanted) and size:
                    transcript.drop(at, size)
                    for each in wanted:
                        del model[each]
                elif size:
                    with pytest.raises(ProtocolBroken):
                        transcript.drop(at, size)
            case ("forget", int(below), _):
                transcript.forget(below)
                model = {at: byte for at, byte in model.items() if at >= below}
            case _:
                transcript.begin_again()
                model = dict(enumerate(model[at] for at in sorted(model)))
                came = len(model)
        assert (transcript.kept_bytes, transcript.end) == (len(model), came)
    kept = bytes(model[at] for at in sorted(model) if begin <= at < end)
    assert transcript.between(begin, end) == kept


def test_the_number_of_dropped_ranges_is_bounded() -> None:
    transcript = PlaneTranscript()
    transcript.append(bytes(2 * MOST_DROPS + 2))
    for each in range(MOST_DROPS):
        transcript.drop(2 * each, 1)
    with pytest.raises(ProtocolBroken, match="too many"):
        transcript.drop(2 * MOST_DROPS, 1)
