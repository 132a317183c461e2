"""How several edge hosts agree on who may act on a satellite and who uses it.

`contract` has the rules and the protocol `Coordination`, with `LocalCoordination` for one host alone. `shared` keeps the
rules for several hosts: `rows` are the atomic steps that it stands on, `turn` is one host's right to act and its clocks,
and `liveness` knows which hosts are alive. `dynamodb` is the adapter.

It must never compare the clocks of two hosts, never call a provider, and never let two hosts act on one machine.
"""
