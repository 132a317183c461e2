"""The report: what the ledger adds up to in hours, money and waiting.

`summary` has the sums, `table` prints them, `plain` gives them to programs, and `picture` draws them (`svg` and `png` paint
it).

It is pure. It must never read a store or the network itself, and never need a running daemon.
"""
