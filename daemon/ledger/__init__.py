"""Which satellite was in which state, when and why: one contract, and its adapters."""
