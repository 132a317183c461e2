"""grpclib's messages as bytes, for its client and its satellite."""

from grpclib.encoding.base import CodecBase


class BytesCodec(CodecBase):
    """Messages are bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type) -> bytes:
        return message

    def decode(self, data: bytes, message_type: type) -> bytes:
        return data
