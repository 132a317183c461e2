"""Every bound of the greeting, with its reason. What is over a limit is refused by its name."""

TRANSCRIPT_BYTES = 256 << 10
"""Kept while held: the 64 KiB that an empty SETTINGS lets a client send as DATA, header blocks of the streams it opens
meanwhile, and frame headers. Past it we stop reading, and TCP pushes back."""
GREETING_BYTES = 64 << 10
"""Everything before the first header block is complete."""
HEADER_BLOCK_BYTES = 32 << 10
"""Compressed: metadata with a token of over 16 KiB does exist (JWTs), and comes as CONTINUATION."""
HEADER_LIST_BYTES = 48 << 10
"""Decoded, as RFC 9113 §6.5.2 counts (32 per field): an HPACK bomb ends here."""
HEADER_FIELDS = 100
CONTINUATION_FRAMES = 8
"""nghttp2's bound; a flood of empty ones (CVE-2024-27316 and kin) ends here."""
SETTINGS_FRAMES = 3
SETTINGS_ENTRIES = 32
PING_FRAMES = 10
"""Before the header block."""
PING_BURST = 10
PING_PER_S = 2.0
"""While held: real clients' keepalive is seconds apart (grpc-go: 10 s at least)."""
RST_STREAM_FRAMES = 100
"""While held: streams that a client gave up; 10 before the header block would do, nobody sends any there."""
FRAME_BYTES = 16_384
"""SETTINGS_MAX_FRAME_SIZE's initial value (RFC 9113 §6.5.2); we never announce another."""
TABLE_BYTES = 4_096
"""SETTINGS_HEADER_TABLE_SIZE's initial value."""
WINDOW_BYTES = 65_535
"""The connection's initial flow-control window (RFC 9113 §6.9.2); we never send WINDOW_UPDATE."""
ANSWERED_MESSAGE_BYTES = 4_096
"""One request to a service of our own; a health check names one service."""
ANSWERED_STREAMS = 100
"""Open at once on a connection that we answer ourselves (RFC 9113 §5.1.2 advises no fewer)."""
ANSWERED_BURST = 500
ANSWERED_PER_S = 100.0
"""Requests, resets, PINGs, SETTINGS, WINDOW_UPDATEs and empty DATA on such a connection: each makes us work, and a
health check needs a handful. Rapid reset (CVE-2023-44487) and its kin end here."""
