"""atheris on the greeting: `python -P fuzz_greeting.py [libFuzzer's options] NEW_CORPUS SEED_CORPUS`."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["bentpipe.proto", "hpack", "h2", "hyperframe"]):
    from harness import one_input


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
