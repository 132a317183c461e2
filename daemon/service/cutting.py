"""Cutting live connections: the control socket's verb, and the command that asks for it."""

import logging
from collections.abc import Callable
from pathlib import Path

import click

from bentpipe.daemon.edge.handoff import HandOff, Pending, Splice
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.control import SERVICE_SOCKET, ControlError, Fields, Verb, ask
from bentpipe.daemon.service.installed import load_operators_config

log = logging.getLogger("bentpipe")


def cut_verb(handoff: HandOff, fleet: Fleet) -> Verb:
    """Make the verb: it takes `{"principal": NAME}` or `{"satellite": "ORG/NAME"}`, and answers `{"cut": N}`."""

    async def cut(fields: Fields) -> Fields:
        count = handoff.cut(_meant(fields, fleet))
        log.warning("connections cut", extra={"fields": {**fields, "cut": count}})
        return {"cut": count}

    return cut


def cut_revoked(handoff: HandOff) -> Callable[[str], None]:
    """For what is revoked together with its connections: a token's name, `org:NAME`, `rule:NAME` or `exchange:ID`."""

    def cut(subject: str) -> None:
        kind, colon, name = subject.partition(":")
        if not colon:
            count = handoff.cut(lambda splice: splice.is_of(f"token:{subject}"))
        elif kind == "org":
            count = handoff.cut(lambda splice: splice.key.org == name)
        else:
            count = handoff.cut(lambda splice: splice.is_of(subject))
        log.warning("connections of what was revoked cut", extra={"fields": {"revoked": subject, "cut": count}})

    return cut


def _meant(fields: Fields, fleet: Fleet) -> Callable[[Splice | Pending], bool]:
    match dict(fields):
        case {"principal": str(name), **rest} if not rest:
            return lambda splice: splice.is_of(name)
        case {"satellite": str(text), **rest} if not rest:
            org, _, name = text.partition("/")
            key = SatelliteKey(org, name)
            if fleet.find(key) is None:
                raise ControlError(f"no satellite {text!r} here: expected ORG/NAME")
            return lambda splice: splice.key == key
        case _:
            raise ControlError("cut needs either principal or satellite, as a string")


def run_cut(config_path: Path | None, principal: str | None, satellite: str | None) -> None:
    """Ask this host's daemon to cut, and say how many were. Raises ConfigErrors, ControlError."""
    if (principal is None) == (satellite is None):
        raise click.UsageError("give one of --principal and --satellite")
    section = load_operators_config(config_path, check_files=False).control if config_path is not None else None
    path = (section.socket_path() if section is not None else None) or SERVICE_SOCKET
    fields = {"principal": principal} if principal is not None else {"satellite": satellite}
    click.echo(f"cut {ask(path, 'cut', fields)['cut']} connections")
