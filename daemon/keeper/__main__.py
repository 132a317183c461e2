"""`python -m bentpipe.daemon.keeper`: reads the arguments, which `bentpipe keeper` and the daemon give. Not for people."""

import os
import sys
from pathlib import Path

from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.program import Options, run_keeper
from bentpipe.daemon.keeper.renewal import CHECK, STATE
from bentpipe.daemon.keeper.state import UnknownState, read_state, take_descriptors
from bentpipe.daemon.keeper.users import parse_uids

EXIT_CANNOT_START = 2
FIRST_FREE_FD = 3
NAMES = frozenset({"socket", "uids", "directory", "isolation", "outlive", "detached", STATE, CHECK})


def parse(arguments: list[str]) -> Options:
    """Read NAME=VALUE arguments. Raises ValueError, KeyError."""
    given = dict(each.split("=", 1) for each in arguments)
    if unknown := given.keys() - NAMES:
        raise ValueError(f"unknown arguments: {' '.join(sorted(unknown))}")
    return Options(
        Path(given["socket"]),
        parse_uids(given["uids"]) if given.get("uids") else None,
        Path(given.get("directory", "/nonexistent")),
        Isolation[given["isolation"]] if given.get("isolation") else None,
        float(given["outlive"]) if "outlive" in given else None,
        given.get("detached") == "yes",
    )


def _descriptor(name: str) -> int | None:
    """The descriptor that is given as NAME=NUMBER; None if there is none. Raises ValueError."""
    given = [each.partition("=")[2] for each in sys.argv[1:] if each.startswith(f"{name}=")]
    return int(given[-1]) if given else None


def main() -> None:
    """Run the keeper. Ends with EXIT_CANNOT_START, and the reason on stderr, if that is impossible."""
    try:
        options = parse(sys.argv[1:])
        if (file := _descriptor(CHECK)) is not None:
            Isolation[read_state(file).isolation]
            return
        if (file := _descriptor(STATE)) is not None:
            state = read_state(file)
            os.close(file)
            take_descriptors(state)
            run_keeper(options, state)
            return
        if options.is_detached:
            # No descriptor of the daemon that has started us may outlive it in us.
            os.closerange(FIRST_FREE_FD, os.sysconf("SC_OPEN_MAX"))
            os.chdir("/")
        run_keeper(options)
    except (OSError, ValueError, KeyError, UnknownState) as error:
        print(f"{error.strerror or error}" if isinstance(error, OSError) else str(error), file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
