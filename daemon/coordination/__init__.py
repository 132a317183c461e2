"""How several edge hosts agree on who may act on a satellite and who uses it. One contract, and its adapters.

It must never compare the clocks of two hosts, never call a provider, and never let two hosts act on one machine.
"""
