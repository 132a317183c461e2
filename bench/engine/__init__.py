"""What the engine costs, without a daemon."""
