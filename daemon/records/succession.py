"""The counts of parts that took each other's place: a counter of the daemon must not fall when a reload exchanges a part."""

from typing import Generic, Protocol, Self, TypeVar


class Counts(Protocol):
    """Numbers that add up."""

    def __add__(self, other: Self, /) -> Self:
        """The sums of both."""
        ...


S = TypeVar("S", bound=Counts)
S_co = TypeVar("S_co", bound=Counts, covariant=True)


class Counted(Protocol[S_co]):
    """A part that counts what it does."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and counts no more."""
        ...

    def statistics(self) -> S_co:
        """What it has counted so far."""
        ...


class Succession(Generic[S]):
    """The present part, earlier ones that are still ending, and what those had counted that are over."""

    def __init__(self) -> None:
        self._members: list[Counted[S]] = []
        self._past: S | None = None

    def add(self, member: Counted[S]) -> None:
        """Another part takes the place of the last one."""
        for each in self._members:
            if each.is_over:
                counted = each.statistics()
                self._past = counted if self._past is None else self._past + counted
        self._members = [each for each in self._members if not each.is_over]
        self._members.append(member)

    def statistics(self) -> S | None:
        """What all of them have counted; None if there never was one."""
        found = self._past
        for each in self._members:
            counted = each.statistics()
            found = counted if found is None else found + counted
        return found
