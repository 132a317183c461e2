"""Those who have shown no proof yet: counted by address prefix, and who of them has to go when they are too many. Pure.

IPv4 counts by /32, IPv6 by /64, since a /64 is one customer's at least (RFC 6177, RFC 7934), IPv4-mapped addresses as
IPv4. A /48 or /56 is often one customer's too, and to be had for free: who has to go is looked for in the most crowded
/48, in it in the most crowded /56, and so on, so that 65,536 prefixes of one attacker weigh no more than one of them.
"""

import ipaddress
from typing import Generic, Protocol, TypeVar

Path = tuple[str, ...]
"""A prefix, from the coarsest to the one that counts."""

IPV6_PREFIXES = (48, 56, 64)


def prefix_of(host: str) -> Path:
    """The prefix of an IP address, perhaps with a zone; what is none (a peer by a Unix socket) is one by itself."""
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
    """What is counted: its prefix, since when, and its bytes."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def since(self) -> float: ...  # noqa: D102
    @property
    def held_bytes(self) -> int: ...  # noqa: D102


S = TypeVar("S", bound=Stranger)


class _Group(Generic[S]):
    """All strangers of one prefix: groups of finer ones, or of the finest the strangers themselves, first come first."""

    __slots__ = ("count", "finer", "held_bytes", "ranks", "strangers")

    def __init__(self) -> None:
        self.count = 0
        self.held_bytes = 0
        self.finer: dict[str, _Group[S]] = {}
        self.ranks: list[dict[str, None]] = [{}]
        self.strangers: dict[S, None] = {}

    def moved(self, key: str, before: int, after: int) -> None:
        """A finer group counts one more or less: keep the ranks, so that the most crowded is found without a search."""
        self.ranks[before].pop(key, None)
        if after:
            if after == len(self.ranks):
                self.ranks.append({})
            self.ranks[after][key] = None
        while len(self.ranks) > 1 and not self.ranks[-1]:
            self.ranks.pop()

    def most_crowded(self) -> "_Group[S]":
        """Of the finer ones."""
        return self.finer[next(iter(self.ranks[-1]))]


class Strangers(Generic[S]):
    """The strangers' account."""

    def __init__(self) -> None:
        self._root: _Group[S] = _Group()

    def __len__(self) -> int:
        return self._root.count

    @property
    def held_bytes(self) -> int:
        """What all of them hold."""
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
        """A stranger's bytes have changed by so much."""
        for group in (self._root, *self._groups(stranger.path)):
            group.held_bytes += difference

    def _groups(self, path: Path) -> list[_Group[S]]:
        """Those on the way to a prefix; fewer if nobody is there."""
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
        """How many a prefix has."""
        found = self._finest(path)
        return 0 if found is None else found.count

    def bytes_of(self, path: Path) -> int:
        """What a prefix holds."""
        found = self._finest(path)
        return 0 if found is None else found.held_bytes

    def oldest_of(self, path: Path) -> S | None:
        """Who of a prefix came first."""
        found = self._finest(path)
        return None if found is None else next(iter(found.strangers))

    def oldest_of_the_most_crowded(self) -> S | None:
        """Who goes when there are too many."""
        group = self._root
        while group.finer:
            group = group.most_crowded()
        return next(iter(group.strangers), None)

    def most_expensive(self, path: Path = ()) -> S | None:
        """Who goes when they hold too many bytes: of the prefix that holds most (or of a given one) who holds most."""
        group = self._finest(path) if path else self._root
        if group is None:
            return None
        while group.finer:
            group = max(group.finer.values(), key=lambda finer: finer.held_bytes)
        return max(group.strangers, key=lambda stranger: stranger.held_bytes, default=None)
