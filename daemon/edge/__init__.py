"""The client side, from accept to hand-off: listeners, TLS, greeting, admission, refusals, dial.

It must never start or stop a machine: it asks the fleet for a lease. It must never change a byte between client and
satellite, except what `docs/connection.md` lists, and never log a token.
"""
