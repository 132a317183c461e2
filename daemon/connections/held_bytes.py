"""What a connection costs the daemon besides the bytes that its client has sent.

The figures were measured, and tests/e2e/test_accounts.py measures them again. Every byte that is kept for a connection is
charged to one quota (`quotas.py`): these bytes, and those that the client has sent.
"""

FAIR_BYTES = 4 << 10
"""What a client may have sent though `limits.held_bytes` is reached: an opening with its metadata and a small request. So
the limit refuses a client that sends much, and not the next client that happens to come. In all, at most `limits.held_bytes`
are kept, and for each connection FAIR_BYTES and one read."""

PLACE_BYTES = 8 << 10
"""A connection before its hand-off: its task and its objects."""

TLS_BYTES = 20 << 10
"""OpenSSL's state of a connection, from the first byte of its handshake."""

HELD_BYTES = 8 << 10
"""The wait of a client for its satellite: frames, scopes, and a second task while it is dialled for longer."""

CLIENT_BYTES = 64 << 10
"""What a held client may cost besides what it has sent: its tasks, its objects and OpenSSL's state. So the memory of all
held clients is bounded by `limits.held_bytes`, and CLIENT_BYTES for each of `limits.max_connections`."""
