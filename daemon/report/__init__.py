"""The report: what the ledger adds up to in hours, money and waiting, as numbers, as a table and as a picture.

It is pure. It must never read a store or the network itself, and never need a running daemon.
"""
