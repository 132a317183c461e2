"""The control plane: everything between accept(2) and the hand-off to the engine, on one Trio thread.

DESIGN.md's table says which of its packages may import which. This package itself imports nothing. Nothing in it may
ever block the Trio thread: slow calls run in worker threads, each with a deadline or an owner.
"""
