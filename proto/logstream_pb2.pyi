from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StreamLogRequest(_message.Message):
    __slots__ = ("eof",)
    EOF_FIELD_NUMBER: _ClassVar[int]
    eof: bool
    def __init__(self, eof: _Optional[bool] = ...) -> None: ...

class StreamLogResponse(_message.Message):
    __slots__ = ("eof_ack",)
    EOF_ACK_FIELD_NUMBER: _ClassVar[int]
    eof_ack: bool
    def __init__(self, eof_ack: _Optional[bool] = ...) -> None: ...
