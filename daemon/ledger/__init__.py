"""The ledger: which satellite was in which state, from when to when, and why.

`contract` has the laws, the values and the protocol `Ledger`; `sqlite` and `dynamodb` (with `dynamodb_items`) are its
adapters. `recorder` brings the fleet's transitions to a ledger, and `merge` makes one chain of what several hosts saw.

It must never slow or stop routing: while the store fails, transitions wait. It must never record anything that no daemon
has seen: a time that nobody observed is UNKNOWN.
"""
