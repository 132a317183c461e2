"""Counts strangers by address prefix, and finds the stranger to evict if there are too many. Pure.

IPv4 counts by /32. IPv6 counts by /64, since a /64 belongs to one customer at least (RFC 6177, RFC 7934). IPv4-mapped
addresses count as IPv4. A /48 or /56 often belongs to one customer too, and costs nothing. So the stranger to evict is
looked for in the most crowded /48, there in the most crowded /56, and so on: 65,536 prefixes of one attacker then weigh no
more than one prefix.
"""

import functools
import ipaddress
from typing import Generic, Protocol, TypeVar

Path = tuple[str, ...]
"""A prefix, from the coarsest to the one that counts."""

IPV6_PREFIXES = (48, 56, 64)
KNOWN_HOSTS = 4096
"""Peers whose prefix is not worked out again; most of a busy host's connections come from some hundred addresses."""


@functools.lru_cache(KNOWN_HOSTS)
def prefix_of(host: str) -> Path:
    """Find the prefix of an IP address, which may have a zone. Any other peer (a Unix socket's) is a prefix of its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return (host,)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            number = int(address)
            return tuple(f"{number >> (128 - bits):x}/{bits}" for bits in IPV6_PREFIXES)
        address = address.ipv4_mapped
    return (str(address),)


class Stranger(Protocol):
    """A stranger as it is counted: its prefix, the time of its accept, and its bytes."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def since(self) -> float: ...  # noqa: D102
    @property
    def held_bytes(self) -> int: ...  # noqa: D102


S = TypeVar("S", bound=Stranger)


class _Group(Generic[S]):
    """All strangers of one prefix: the groups of its finer prefixes, or of the finest the strangers, in order of arrival."""

    __slots__ = ("count", "finer", "held_bytes", "ranks", "strangers")

    def __init__(self) -> None:
        self.count = 0
        self.held_bytes = 0
        self.finer: dict[str, _Group[S]] = {}
        self.ranks: list[dict[str, None]] = [{}]
        self.strangers: dict[S, None] = {}

    def moved(self, key: str, before: int, after: int) -> None:
        """Keep the ranks when a finer group has grown or shrunk by one, so that the most crowded is found without a
        search."""
        self.ranks[before].pop(key, None)
        if after:
            if after == len(self.ranks):
                self.ranks.append({})
            self.ranks[after][key] = None
        while len(self.ranks) > 1 and not self.ranks[-1]:
            self.ranks.pop()

    def most_crowded(self) -> "_Group[S]":
        """The most crowded of the finer groups."""
        return self.finer[next(iter(self.ranks[-1]))]


class Strangers(Generic[S]):
    """The strangers' account."""

    def __init__(self) -> None:
        self._root: _Group[S] = _Group()

    def __len__(self) -> int:
        return self._root.count

    @property
    def held_bytes(self) -> int:
        """The bytes of all strangers."""
        return self._root.held_bytes

    def add(self, stranger: S) -> None:
        """Count one more."""
        group = self._root
        for key in stranger.path:
            finer = group.finer.get(key)
            if finer is None:
                finer = group.finer[key] = _Group()
            group.count += 1
            group.held_bytes += stranger.held_bytes
            group.moved(key, finer.count, finer.count + 1)
            group = finer
        group.count += 1
        group.held_bytes += stranger.held_bytes
        group.strangers[stranger] = None

    def remove(self, stranger: S) -> None:
        """Count one less."""
        group = self._root
        for key in stranger.path:
            finer = group.finer[key]
            group.count -= 1
            group.held_bytes -= stranger.held_bytes
            group.moved(key, finer.count, finer.count - 1)
            if finer.count == 1:
                del group.finer[key]
            group = finer
        group.count -= 1
        group.held_bytes -= stranger.held_bytes
        del group.strangers[stranger]

    def grew(self, stranger: S, difference: int) -> None:
        """Count that a stranger's bytes have changed by so much."""
        for group in (self._root, *self._groups(stranger.path)):
            group.held_bytes += difference

    def _groups(self, path: Path) -> list[_Group[S]]:
        """The groups on the way to a prefix; fewer if it has no strangers."""
        groups: list[_Group[S]] = []
        group = self._root
        for key in path:
            if key not in group.finer:
                break
            group = group.finer[key]
            groups.append(group)
        return groups

    def _finest(self, path: Path) -> _Group[S] | None:
        groups = self._groups(path)
        return groups[-1] if len(groups) == len(path) else None

    def count_of(self, path: Path) -> int:
        """How many strangers a prefix has."""
        found = self._finest(path)
        return 0 if found is None else found.count

    def bytes_of(self, path: Path) -> int:
        """The bytes of a prefix."""
        found = self._finest(path)
        return 0 if found is None else found.held_bytes

    def oldest_of(self, path: Path) -> S | None:
        """The stranger of a prefix that came first."""
        found = self._finest(path)
        return None if found is None else next(iter(found.strangers))

    def oldest_of_the_most_crowded(self) -> S | None:
        """The stranger to evict if there are too many."""
        group = self._root
        while group.finer:
            group = group.most_crowded()
        return next(iter(group.strangers), None)

    def most_expensive(self, path: Path = ()) -> S | None:
        """The stranger to evict for its bytes: the one with most, in the prefix with most (or in the given prefix)."""
        group = self._finest(path) if path else self._root
        if group is None:
            return None
        while group.finer:
            group = max(group.finer.values(), key=lambda finer: finer.held_bytes)
        return max(group.strangers, key=lambda stranger: stranger.held_bytes, default=None)
