"""One header block: HEADERS and its CONTINUATIONs put together, bounded, and decoded on request (hpack)."""

import hpack

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.events import HeaderList
from bentpipe.proto.frames import END_STREAM, PRIORITY_FLAG, FrameHeader
from bentpipe.proto.hpack_scan import check_block
from bentpipe.proto.payloads import unpadded

PRIORITY_BYTES = 5
"""Deprecated, but still sent (RFC 9113 §6.2)."""


class HeaderBlock:
    """A block, which begins with HEADERS.

    Only a block that is `kept` can be decoded; of any other only the size is known.
    """

    def __init__(self, header: FrameHeader, payload: bytes, *, kept: bool) -> None:
        self.stream_id = header.stream_id
        self.end_stream = bool(header.flags & END_STREAM)
        self.kept = kept
        self._fragments = bytearray()
        self._bytes = 0
        self._continuations = 0
        content = unpadded(header, payload)
        start = PRIORITY_BYTES if header.flags & PRIORITY_FLAG else 0
        if start > len(content):
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"HEADERS of {header.length} bytes")
        self._add(content[start:])

    def extend(self, payload: bytes) -> None:
        """Take a CONTINUATION. Raises GreetingError."""
        self._continuations += 1
        if self._continuations > limits.CONTINUATION_FRAMES:
            raise over("CONTINUATION_FRAMES")
        self._add(payload)

    def _add(self, fragment: bytes) -> None:
        self._bytes += len(fragment)
        if self._bytes > limits.HEADER_BLOCK_BYTES:
            raise over("HEADER_BLOCK_BYTES")
        if self.kept:
            self._fragments += fragment

    def check(self) -> None:
        """Refuse a complete block that would be too costly to decode. Raises GreetingError."""
        check_block(self._fragments)

    def decode(self) -> HeaderList:
        """Decode the connection's first block. Raises GreetingError."""
        self.check()
        decoder = hpack.Decoder(max_header_list_size=limits.HEADER_LIST_BYTES)
        decoder.max_allowed_table_size = limits.TABLE_BYTES
        try:
            fields = tuple(
                (bytes(field[0]), bytes(field[1])) for field in decoder.decode(bytes(self._fragments), raw=True)
            )
        except hpack.OversizedHeaderListError as exc:
            raise over("HEADER_LIST_BYTES") from exc
        except hpack.InvalidTableSizeError as exc:
            raise GreetingError(ErrorCode.COMPRESSION_ERROR, "over the limit TABLE_BYTES", "TABLE_BYTES") from exc
        except hpack.HPACKError as exc:
            # hpack's own message can contain an address in our memory, and this message goes to the client.
            raise GreetingError(ErrorCode.COMPRESSION_ERROR, "the header block cannot be decoded") from exc
        return fields
