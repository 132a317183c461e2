"""atheris on the greeting: `python -m beds.fuzz.fuzz_greeting [libFuzzer's options] NEW_CORPUS SEED_CORPUS`.

The seeds are recorded openings in two flights, NAME.0 and NAME.1; put together they go into NEW_CORPUS first, with a request
as `asked_of` reads it.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bentpipe.proto", "hpack", "h2", "hyperframe"]):
    from beds.fuzz.harness import one_input

ASKED = b"b.acme.builds.example\n:method=POST\n:path=/a\nsatellite_org=acme\nsatellite-name=b\nauthorization=Bearer t"
WHOLE = b"\0"
"""The harness' choice: uncut, with its own preface."""


def main() -> None:
    new, seeds = (Path(argument) for argument in sys.argv[-2:])
    for first in seeds.glob("*.0"):
        (new / first.stem).write_bytes(first.read_bytes() + first.with_suffix(".1").read_bytes() + WHOLE)
    (new / "asked").write_bytes(ASKED + WHOLE)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
