"""Builds buildkitd of Earthly's fork, from Go's module proxy.

`make peers` runs it as a program, ahead of the tests. It is apart from `builds`, since each change of that module builds
every peer again."""

import functools
import sys

from beds.peers import builds

BUILDKITD = "github.com/moby/buildkit/cmd/buildkitd"
"""The fork has kept the module's path; go.mod replaces it."""


@functools.cache
def earthly_buildkitd() -> str:
    """The fork's buildkitd. Raises builds.Missing."""
    return str(builds._go_build("earthly-buildkit", BUILDKITD) / "buildkitd")


def main() -> int:
    """Build it, and say whether it is there."""
    try:
        earthly_buildkitd()
    except builds.Missing as exc:
        sys.stdout.write(f"peer Earthly's buildkitd: its tests are skipped: {exc}\n")
    else:
        sys.stdout.write("peer Earthly's buildkitd: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
