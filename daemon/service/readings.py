"""Connects the reading of responders with the configuration and the connections. Starts nothing."""

from bentpipe.config.model import Config, SatelliteSection
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.questions import Questions, ResponderTarget
from bentpipe.daemon.fleet.reader import ReadingContext
from bentpipe.daemon.model import SatelliteKey


def target_of(section: SatelliteSection) -> ResponderTarget | None:
    """Where the satellite's responder is; None if it has none."""
    responder = section.responder
    return None if responder is None else ResponderTarget(responder.port, responder.deadline_s)


def responders_of(config: Config) -> dict[SatelliteKey, ResponderTarget]:
    """Find the responders of the configuration's own satellites. Launched ones are added at run time."""
    found = {SatelliteKey(section.org, section.name): target_of(section) for section in config.satellite}
    return {key: target for key, target in found.items() if target is not None}


def reading_of(questions: Questions, handoff: HandOff) -> ReadingContext:
    """Make what the satellites' readers share. Without any satellite that has a responder it does nothing."""
    return ReadingContext(
        read=questions.read,
        connections=handoff.connected,
        cut=lambda key: handoff.cut(lambda each: each.key == key),
    )
