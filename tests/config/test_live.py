"""Every key is declared: it changes in a running daemon, or needs a restart. And what differs is told."""

import types
import typing
from collections.abc import Iterator

import pytest

from bentpipe.config.admin import AdminSection
from bentpipe.config.base import Section
from bentpipe.config.live import CHANGES, ENTRIES, Effect, change_of, differences
from bentpipe.config.model import Config
from bentpipe.config.observability import MetricsSection, RecordsSection, TracesSection

HASH = "sha256:" + "0" * 64


def sections_in(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Section):
            yield annotation
        return
    for each in typing.get_args(annotation):
        yield from sections_in(each)


def reachable(kind: type[Section]) -> set[type[Section]]:
    found = {kind}
    for info in kind.model_fields.values():
        for each in sections_in(info.annotation):
            found |= reachable(each)
    return found


SECTIONS = sorted(reachable(Config), key=lambda each: each.__name__)


def test_the_walk_finds_the_sections() -> None:
    names = {each.__name__ for each in SECTIONS}
    assert {"CacheSection", "KeepAwakeSection", "RateSection", "AlternativeSection", "KeyPairSection"} <= names
    assert len(SECTIONS) > 30


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_key_is_decided_about(kind: type[Section]) -> None:
    undecided = []
    for field in kind.model_fields:
        try:
            change_of(kind, field)
        except KeyError:
            undecided.append(field)
    assert not undecided, (
        f"{kind.__name__}: say in config/live.py whether these change in a running daemon: {undecided}"
    )


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_key_that_needs_a_restart_has_a_reason(kind: type[Section]) -> None:
    for field in kind.model_fields:
        change = change_of(kind, field)
        assert (change.effect is Effect.RESTART) is bool(change.reason), field


def test_what_is_told_of_the_work_changes_at_once() -> None:
    """Records, metrics and traces, and the page: each key, and the sections themselves."""
    for kind in (RecordsSection, MetricsSection, TracesSection, AdminSection):
        assert {change_of(kind, field).effect for field in kind.model_fields} == {Effect.NOW}, kind.__name__
    assert {change_of(Config, field).effect for field in ("records", "metrics", "traces", "admin")} == {Effect.NOW}


def test_nothing_is_decided_that_is_not_there() -> None:
    for kind, changes in CHANGES.items():
        assert set(changes) <= set(kind.model_fields), kind.__name__


def test_every_list_of_entries_has_names() -> None:
    lists = {
        name
        for name, info in Config.model_fields.items()
        if typing.get_origin(info.annotation) is tuple and list(sections_in(info.annotation))
    }
    assert lists == set(ENTRIES)


def config(**more: object) -> Config:
    satellite = {
        "org": "acme",
        "name": "ci",
        "process": {"command": ["true", "{port}"], "environment": {"A": "secret"}},
    }
    whole = {"listener": [{"address": "127.0.0.1:8372"}], "satellite": [satellite], **more}
    return Config.model_validate(whole)


def test_what_differs_is_told_with_its_values_and_what_follows() -> None:
    token = {"name": "ci", "hash": HASH, "grants": ["acme/*"]}
    before = config(token=[token], limits={"max_held": 3}, engine={"threads": 1})
    changed = config().satellite[0].model_copy(update={"sleep_after_s": 60.0})
    after = config(
        token=[
            {**token, "grants": ["acme/ci"], "hash": HASH.replace("0", "1")},
            {**token, "name": "new", "hash": HASH},
        ],
        limits={"max_held": 4},
        engine={"threads": 2},
    ).model_copy(update={"satellite": (changed,)})
    assert [str(each) for each in differences(before, after)] == [
        "limits.max_held: 3 → 4 (at once)",
        "engine.threads: 1 → 2 (needs a restart: the engine's threads and pipes are made at the start)",
        "token ci.hash: changed (at once)",
        "token ci.grants: acme/* → acme/ci (at once)",
        "token new: added (at once)",
        "satellite acme/ci.sleep_after: 1800 → 60 (at once)",
    ]
    assert [str(each) for each in differences(after, before)][-2:] == [
        "token ci.grants: acme/ci → acme/* (at once)",
        "satellite acme/ci.sleep_after: 60 → 1800 (at once)",
    ]


def test_secrets_are_not_told() -> None:
    process = {"command": ["true", "{port}"], "environment": {"A": "other secret"}}
    after = config(satellite=[{"org": "acme", "name": "ci", "process": process}])
    (told,) = differences(config(), after)
    assert "secret" not in str(told)
    assert told.change is Effect.ASLEEP


def test_the_order_of_entries_does_not_count_and_a_removed_satellite_is_drained() -> None:
    more = {"org": "acme", "name": "more", "process": {"command": ["true", "{port}"]}}
    one = {"org": "acme", "name": "one", "process": {"command": ["true", "{port}"]}}
    assert not differences(config(satellite=[more, one]), config(satellite=[one, more]))
    (told,) = differences(config(satellite=[more, one]), config(satellite=[one]))
    assert (told.where, told.change) == ("satellite acme/more", Effect.DRAINED)


def test_a_listener_is_known_by_its_port() -> None:
    before = config(listener=[{"address": "127.0.0.1:8372"}, {"systemd": "clients"}])
    after = config(listener=[{"address": "127.0.0.1:8373"}, {"systemd": "clients", "api": True}])
    assert {str(each) for each in differences(before, after)} == {
        "listener 127.0.0.1:8372: removed (needs a restart: the sockets of clients are opened at the start)",
        "listener 127.0.0.1:8373: added (needs a restart: the sockets of clients are opened at the start)",
        "listener systemd:clients.api: False → True (at once)",
    }


def test_a_section_that_comes_or_goes_is_told_and_so_is_a_changed_type() -> None:
    kind = {"size": "small", "process": {"command": ["true", "{port}"]}}
    before = config(machine_type=[kind])
    after = config(machine_type=[{**kind, "sleep_after": "1m"}], prices={"awake_hour": 1.5})
    prices, sleep = differences(before, after)
    assert str(prices) == "prices: added (at once)"
    assert sleep.where.startswith("machine_type small ")
    prices, _ = differences(after, before)
    assert str(prices) == "prices: removed (at once)"


def test_a_field_without_a_decision_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"Config\.nothing"):
        change_of(Config, "nothing")
