"""The wire protocol: the HTTP/2 greeting, the PROXY header, gRPC status and health, refusals.

All of it is sans-IO: bytes and events go in, events and bytes come out. It must never import trio, socket or ssl, never
wait, and never know a satellite or a token.
"""
