"""The Earthly CLI's log stream: read to its end and acknowledged, and nothing of it is kept."""

from bentpipe.daemon.api.call import Call, Method, decoded
from bentpipe.proto.logstream_pb2 import StreamLogRequest, StreamLogResponse


async def stream_logs(call: Call) -> None:
    """Take log lines until `eof`. Raises InvalidRequest."""
    while (message := await call.receive()) is not None:
        if decoded(StreamLogRequest, message).eof:
            await call.send(StreamLogResponse(eof_ack=True))
            return


METHODS = {"/api.public.logstream.LogStream/StreamLogs": Method(stream_logs)}
