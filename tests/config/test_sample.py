"""config/sample.toml has every key of the model, and no other: what it only comments on counts like what it sets."""

import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from bentpipe.config.model import Config

SAMPLE = Path(__file__).parents[2] / "config" / "sample.toml"
COMMENTED = re.compile(r"^# (?=\[\[?[a-z_.]+\]|[a-z_]+ += )", re.MULTILINE)
"""A key or a section that is there as a comment."""
ANY_NAME = "*"


def with_what_it_comments_on() -> Mapping[str, object]:
    return tomllib.loads(COMMENTED.sub("", SAMPLE.read_text()))


def sections(annotation: object) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections within a field's type, and what stands between it and them: nothing, or any name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    between = f".{ANY_NAME}" if typing.get_origin(annotation) is dict else ""
    for inner in typing.get_args(annotation):
        for deeper, section in sections(inner):
            yield between + deeper, section


def is_open(annotation: object) -> bool:
    """Whether a field is a table whose keys are not the model's."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(kind) is dict for kind in kinds)


def keys_of_model(section: type[BaseModel], at: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        path = f"{at}.{field.alias or name}".removeprefix(".")
        yield path
        inner = list(sections(field.annotation))
        if is_open(field.annotation):
            yield f"{path}.{ANY_NAME}"
        for between, each in inner:
            yield from keys_of_model(each, path + between)


def keys_of_sample(value: object, known: frozenset[str], at: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from keys_of_sample(each, known, at)
    elif isinstance(value, dict):
        for name, inner in value.items():
            path = f"{at}.{ANY_NAME if f'{at}.{ANY_NAME}' in known else name}".removeprefix(".")
            yield path
            yield from keys_of_sample(inner, known, path)


def test_the_sample_has_every_key_and_no_other() -> None:
    known = frozenset(keys_of_model(Config))
    shown = frozenset(keys_of_sample(with_what_it_comments_on(), known))
    # [[machine_type]] takes the keys of [[satellite]], and says so there.
    shared = {f"machine_type.{each.removeprefix('satellite.')}" for each in known if each.startswith("satellite.")}
    assert sorted(known - shown - shared) == [], "missing in config/sample.toml"
    assert sorted(shown - known) == [], "in config/sample.toml alone"


def test_the_walk_goes_into_lists_tables_and_optional_sections() -> None:
    known = frozenset(keys_of_model(Config))
    assert known >= {
        "satellite.keep_awake.zone",
        "prices.satellite.*.awake_hour",
        "budget.org.*",
        "listener.tls.more.key",
        "listener.proxy_protocol.from",
        "ec2.rates.describe.per_s",
    }
