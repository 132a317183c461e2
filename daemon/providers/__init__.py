"""Where machines come from: one module or package for each provider. `base` is their common contract.

A provider must never know clients, leases or waiters, and never decide when a machine starts or stops. It must never raise
anything but what the contract names.
"""
