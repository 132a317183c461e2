"""Satellites: each has one owner task and one state machine. Leases, waiters, waking and sleeping are decided here.

It must never know what a client says or how it is connected, and never call a cloud's API but through a provider.
"""
