"""The data plane as a process: it owns the listening sockets, the keys, and every connection from accept to end.

It accepts, limits, handshakes and reads the first flight; it dials, replays and splices at the control plane's word, and
reports ends and counters. It must never decide what a client may do: no policy, no store, no cloud, no API is imported here.
By snapshots of what the control plane has decided it may bring a client to its satellite; it never refuses one.
The control plane may die at any moment; what a GO has joined goes on, and all other clients wait here for the next one.
"""
