"""The records of connections: what became of each, told once at its end to the log, the metrics, the store and the traces.

A record follows its connection from accept to the very end; `book.py` has the rule that none is lost. It must never hold a
secret, and must never make a connection wait: what cannot be written in time is dropped and counted.
"""
