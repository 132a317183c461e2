"""The engine's section: what goes together, and what does not."""

import pytest
from pydantic import ValidationError

from bentpipe.config.engine import NOTSENT_LOWAT_LEAST, EngineSection


def test_the_options_that_cost_something_are_off() -> None:
    engine = EngineSection()
    assert (engine.busy_poll_s, engine.notsent_lowat) == (0, 0)


@pytest.mark.parametrize("priority", ["normal", "slice"])
def test_a_thread_may_poll_at_a_priority_that_leaves_others_a_share(priority: str) -> None:
    engine = EngineSection.model_validate({"busy_poll": "200us", "priority": priority})
    assert engine.busy_poll_s == pytest.approx(200e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"busy_poll": "200us", "priority": "realtime"}, "not both"),
        ({"busy_poll": "2ms"}, "less than or equal to 0.001"),
        ({"notsent_lowat": 1}, "at least 16384 bytes"),
        ({"notsent_lowat": NOTSENT_LOWAT_LEAST - 1}, "at least 16384 bytes"),
        ({"notsent_lowat": -1}, "greater than or equal to 0"),
    ],
)
def test_what_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EngineSection.model_validate(values)


def test_a_record_is_the_least() -> None:
    assert EngineSection.model_validate({"notsent_lowat": "16KiB"}).notsent_lowat == NOTSENT_LOWAT_LEAST
