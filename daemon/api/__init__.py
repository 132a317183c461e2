"""The control API that the Earthly CLI and `bentpipe sat` speak: gRPC and HTTP/1.1 on the daemon's own ports.

What it does to satellites it does through the fleet, and who may do it `daemon/accounts/` says. Nothing here touches a
spliced connection, a provider or a store, and no answer tells a satellite that is not the caller's from one that does not
exist.
"""
