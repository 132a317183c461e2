import datetime

from bentpipe.proto import compute_pb2 as _compute_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetActivityRequest(_message.Message):
    __slots__ = ("org_id",)
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    def __init__(self, org_id: _Optional[str] = ...) -> None: ...

class GetActivityResponse(_message.Message):
    __slots__ = ("satellites", "looked_at", "reserve", "host")
    SATELLITES_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    satellites: _containers.RepeatedCompositeFieldContainer[SatelliteActivity]
    looked_at: _timestamp_pb2.Timestamp
    reserve: _containers.RepeatedCompositeFieldContainer[ReserveActivity]
    host: HostActivity
    def __init__(self, satellites: _Optional[_Iterable[_Union[SatelliteActivity, _Mapping]]] = ..., looked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reserve: _Optional[_Iterable[_Union[ReserveActivity, _Mapping]]] = ..., host: _Optional[_Union[HostActivity, _Mapping]] = ...) -> None: ...

class HostActivity(_message.Message):
    __slots__ = ("connections", "data_planes", "by_snapshots", "admitted", "unadmitted", "gates")
    class UnadmittedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_PLANES_FIELD_NUMBER: _ClassVar[int]
    BY_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    UNADMITTED_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    connections: str
    data_planes: _containers.RepeatedCompositeFieldContainer[DataPlaneActivity]
    by_snapshots: bool
    admitted: int
    unadmitted: _containers.ScalarMap[str, int]
    gates: int
    def __init__(self, connections: _Optional[str] = ..., data_planes: _Optional[_Iterable[_Union[DataPlaneActivity, _Mapping]]] = ..., by_snapshots: _Optional[bool] = ..., admitted: _Optional[int] = ..., unadmitted: _Optional[_Mapping[str, int]] = ..., gates: _Optional[int] = ...) -> None: ...

class DataPlaneActivity(_message.Message):
    __slots__ = ("name", "pid", "spliced", "draining")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SPLICED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    pid: int
    spliced: int
    draining: bool
    def __init__(self, name: _Optional[str] = ..., pid: _Optional[int] = ..., spliced: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...

class ReserveActivity(_message.Message):
    __slots__ = ("size", "platform", "wanted", "ready", "filling", "reason")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FILLING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    size: str
    platform: str
    wanted: int
    ready: int
    filling: int
    reason: str
    def __init__(self, size: _Optional[str] = ..., platform: _Optional[str] = ..., wanted: _Optional[int] = ..., ready: _Optional[int] = ..., filling: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SatelliteActivity(_message.Message):
    __slots__ = ("name", "status", "since", "held", "connections", "up_bytes", "down_bytes", "reading")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    UP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: _compute_pb2.SatelliteStatus
    since: _timestamp_pb2.Timestamp
    held: int
    connections: int
    up_bytes: int
    down_bytes: int
    reading: Reading
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[_compute_pb2.SatelliteStatus, str]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., held: _Optional[int] = ..., connections: _Optional[int] = ..., up_bytes: _Optional[int] = ..., down_bytes: _Optional[int] = ..., reading: _Optional[_Union[Reading, _Mapping]] = ...) -> None: ...

class Reading(_message.Message):
    __slots__ = ("condition", "builds", "cpu_percent", "memory_percent", "io_percent", "disk_used_percent", "oom_kills", "uptime_s")
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    IO_PERCENT_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    condition: str
    builds: int
    cpu_percent: float
    memory_percent: float
    io_percent: float
    disk_used_percent: float
    oom_kills: int
    uptime_s: float
    def __init__(self, condition: _Optional[str] = ..., builds: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., memory_percent: _Optional[float] = ..., io_percent: _Optional[float] = ..., disk_used_percent: _Optional[float] = ..., oom_kills: _Optional[int] = ..., uptime_s: _Optional[float] = ...) -> None: ...

class CutConnectionsRequest(_message.Message):
    __slots__ = ("org_id", "name")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class CutConnectionsResponse(_message.Message):
    __slots__ = ("cut",)
    CUT_FIELD_NUMBER: _ClassVar[int]
    cut: int
    def __init__(self, cut: _Optional[int] = ...) -> None: ...
