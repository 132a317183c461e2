"""Satellites: one owner task and one table-driven machine each; leases, waiters, wake and sleep."""
