"""The control plane: everything between accept(2) and the hand-off to the engine, on one Trio thread."""
