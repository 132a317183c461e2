"""Clients and satellites for tests, in many languages and with many faults. The sources of those that are not Python's
are in tests/peers.
"""
