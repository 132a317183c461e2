"""The fuzzing of the parsers of the wire: what must hold, and the fuzzer's program."""
