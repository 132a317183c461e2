"""`bentpipe demo`: the whole path on one machine, with real gRPC clients and with satellites in processes of their own.

It must never reach into the daemon: the daemon is a process of its own, and the demo reads its log. It must never import
tests, so that it runs from an installed wheel.
"""
