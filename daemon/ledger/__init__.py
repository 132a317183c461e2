"""The ledger: which satellite was in which state, when and why. One contract, and its adapters.

It must never slow or stop routing: while the store fails, changes wait. It must never record anything that no daemon has
seen: a time that nobody observed is UNKNOWN.
"""
