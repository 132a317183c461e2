"""Looks at what keeps satellites that are local processes apart from the daemon and from each other."""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.keeper.users import UidRange, parse_uids
from bentpipe.daemon.service.concern import Concern

WHERE = "processes.uids"
SUBORDINATE = Path("/etc/subuid")
NOT_SEPARATED = (
    "is not given: satellites that are processes run as the daemon's user, and can read its keys and its store, unless "
    'bentpipe-keeper.service runs them; give a range of users, or user = "daemon" in [satellite.process] if that is meant'
)


def process_concerns(config: Config, subordinate: Path = SUBORDINATE) -> Iterator[Concern]:
    """Look at the users of local satellites, and at what they could read."""
    if not any(each.process is not None and each.process.user == "own" for each in config.machines):
        return
    if config.processes.uids is None:
        yield Concern(WHERE, NOT_SEPARATED, fatal=False)
        return
    try:
        uids = parse_uids(config.processes.uids)
    except ValueError as error:
        yield Concern(WHERE, str(error), fatal=True)
        return
    if os.geteuid() != 0:
        words = f"needs root: started by user {os.geteuid()}, the daemon would refuse to start local satellites"
        yield Concern(WHERE, words, fatal=False)
    yield from _taken(uids, subordinate)
    yield from _readable(config)


def _taken(uids: UidRange, subordinate: Path) -> Iterator[Concern]:
    """Users of the range that somebody else has."""
    for entry in pwd.getpwall():
        if uids.first <= entry.pw_uid <= uids.last:
            yield Concern(WHERE, f"{uids} has user {entry.pw_uid}, who is {entry.pw_name}", fatal=True)
    try:
        lines = subordinate.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # subuid(5)
        owner, *numbers = line.split(":")
        if len(numbers) == len(("first", "count")) and all(each.isdigit() for each in numbers):
            first, count = map(int, numbers)
            if first <= uids.last and uids.first < first + count:
                words = f"{uids} has users of {first}-{first + count - 1}, which {subordinate} gives to {owner}"
                yield Concern(WHERE, words, fatal=True)


def _readable(config: Config) -> Iterator[Concern]:
    """Secrets of the daemon that every user may read, whatever their own."""
    secrets = [
        (f"listener[{index}].tls.key", pair.key)
        for index, listener in enumerate(config.listener)
        if listener.tls is not None
        for pair in (listener.tls, *listener.tls.more)
    ]
    store = config.store.ledger_path()
    if store is not None:
        secrets.append(("store.path", store))
    for where, path in secrets:
        try:
            mode = path.stat().st_mode
        except OSError:  # another check tells that
            continue
        if mode & stat.S_IROTH:
            yield Concern(where, f"every user may read {path}, so local satellites may: chmod o= {path}", fatal=False)
