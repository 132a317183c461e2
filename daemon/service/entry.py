"""The console script: `bentpipe`. Before anything else is imported, it sees to signals that must not end a starting daemon.

By default SIGHUP, SIGUSR1 and SIGUSR2 end a process. A program that renews certificates, or logrotate, may send one at any
moment. The daemon handles them once it has read everything that they make it read again. Until then they mean nothing.
"""

import signal
import sys

SERVE = "serve"
"""The command that runs for long. Any other command ends with its terminal, as a SIGHUP asks."""


def main() -> None:
    """Run the command line."""
    if SERVE in sys.argv[1:2]:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, _mean_nothing)
    # Imported here: it takes a quarter of a second, in which the signals above may come.
    from bentpipe.daemon.service.cli import main as command_line

    command_line()


def _mean_nothing(number: int, frame: object) -> None:
    """A handler and not SIG_IGN, which the satellites' processes would inherit (signal(7))."""


if __name__ == "__main__":
    main()
