"""The registry: stored tokens (as hashes), launched satellites, and the machines that the daemon launched.

`contract` has the values, their errors and the protocol `Registry`; `sqlite` and `dynamodb` are its adapters.

It must never hold a token itself, and never use a generation twice.
"""
