"""The registry: tokens (as hashes) and the generations of launched machines. One contract, and its adapters.

It must never hold a token itself, and never use a generation twice.
"""
