"""Tokens (as hashes) and the generations of launched machines: one contract, and its adapters."""
