"""Which keys a section of the file may have, for a mistake in one of them. Pure."""

import typing
from collections.abc import Iterator, Sequence

from bentpipe.config.base import Section


def keys_of(section: type[Section], location: Sequence[int | str]) -> set[str]:
    """The keys at a place of the file, by their names there. `location` is the place as pydantic names it: keys and
    positions. Empty if there is no section at that place."""
    kinds = [section]
    for part in location:
        if isinstance(part, str):
            kinds = [kind for each in kinds for kind in _kinds_at(each, part)]
    return {field.alias or name for each in kinds for name, field in each.model_fields.items()}


def _kinds_at(section: type[Section], key: str) -> list[type[Section]]:
    for name, field in section.model_fields.items():
        if key in (name, field.alias):
            return list(_sections_in(field.annotation))
    return [section]  # a name that the operator has chosen, such as that of an org


def _sections_in(annotation: object) -> Iterator[type[Section]]:
    """The sections that a value of this type may be, or may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _sections_in(inner)
