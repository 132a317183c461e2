from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "boot_id", "uptime_ms", "started_at_uptime_ms", "cpus", "memory_locked", "slow_turns", "machine", "builds", "buildkit", "disk", "kills", "network", "boot")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LOCKED_FIELD_NUMBER: _ClassVar[int]
    SLOW_TURNS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    BUILDKIT_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    KILLS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    version: str
    boot_id: str
    uptime_ms: int
    started_at_uptime_ms: int
    cpus: int
    memory_locked: bool
    slow_turns: int
    machine: Machine
    builds: Builds
    buildkit: BuildKit
    disk: Disk
    kills: Kills
    network: Network
    boot: Boot
    def __init__(self, version: _Optional[str] = ..., boot_id: _Optional[str] = ..., uptime_ms: _Optional[int] = ..., started_at_uptime_ms: _Optional[int] = ..., cpus: _Optional[int] = ..., memory_locked: _Optional[bool] = ..., slow_turns: _Optional[int] = ..., machine: _Optional[_Union[Machine, _Mapping]] = ..., builds: _Optional[_Union[Builds, _Mapping]] = ..., buildkit: _Optional[_Union[BuildKit, _Mapping]] = ..., disk: _Optional[_Union[Disk, _Mapping]] = ..., kills: _Optional[_Union[Kills, _Mapping]] = ..., network: _Optional[_Union[Network, _Mapping]] = ..., boot: _Optional[_Union[Boot, _Mapping]] = ...) -> None: ...

class Look(_message.Message):
    __slots__ = ("age_ms", "error")
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    age_ms: int
    error: str
    def __init__(self, age_ms: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Stall(_message.Message):
    __slots__ = ("avg10_percent", "total_us")
    AVG10_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    avg10_percent: float
    total_us: int
    def __init__(self, avg10_percent: _Optional[float] = ..., total_us: _Optional[int] = ...) -> None: ...

class Pressure(_message.Message):
    __slots__ = ("some", "full")
    SOME_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    some: Stall
    full: Stall
    def __init__(self, some: _Optional[_Union[Stall, _Mapping]] = ..., full: _Optional[_Union[Stall, _Mapping]] = ...) -> None: ...

class Pressures(_message.Message):
    __slots__ = ("cpu", "memory", "io")
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    IO_FIELD_NUMBER: _ClassVar[int]
    cpu: Pressure
    memory: Pressure
    io: Pressure
    def __init__(self, cpu: _Optional[_Union[Pressure, _Mapping]] = ..., memory: _Optional[_Union[Pressure, _Mapping]] = ..., io: _Optional[_Union[Pressure, _Mapping]] = ...) -> None: ...

class Machine(_message.Message):
    __slots__ = ("look", "pressure", "memory_total_bytes", "memory_available_bytes", "swap_total_bytes", "swap_free_bytes", "load1")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAP_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAP_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD1_FIELD_NUMBER: _ClassVar[int]
    look: Look
    pressure: Pressures
    memory_total_bytes: int
    memory_available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    load1: float
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., pressure: _Optional[_Union[Pressures, _Mapping]] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., swap_total_bytes: _Optional[int] = ..., swap_free_bytes: _Optional[int] = ..., load1: _Optional[float] = ...) -> None: ...

class Builds(_message.Message):
    __slots__ = ("look", "pressure", "cpu_usage_us", "cpu_throttled_periods", "cpu_throttled_us", "cpu_limit_percent", "memory_bytes", "memory_limit_bytes", "pids", "pids_limit", "steps")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    CPU_USAGE_US_FIELD_NUMBER: _ClassVar[int]
    CPU_THROTTLED_PERIODS_FIELD_NUMBER: _ClassVar[int]
    CPU_THROTTLED_US_FIELD_NUMBER: _ClassVar[int]
    CPU_LIMIT_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    PIDS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    look: Look
    pressure: Pressures
    cpu_usage_us: int
    cpu_throttled_periods: int
    cpu_throttled_us: int
    cpu_limit_percent: int
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    pids_limit: int
    steps: int
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., pressure: _Optional[_Union[Pressures, _Mapping]] = ..., cpu_usage_us: _Optional[int] = ..., cpu_throttled_periods: _Optional[int] = ..., cpu_throttled_us: _Optional[int] = ..., cpu_limit_percent: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., pids_limit: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class BuildKit(_message.Message):
    __slots__ = ("look", "running_count", "running")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    RUNNING_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    look: Look
    running_count: int
    running: _containers.RepeatedCompositeFieldContainer[RunningBuild]
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., running_count: _Optional[int] = ..., running: _Optional[_Iterable[_Union[RunningBuild, _Mapping]]] = ...) -> None: ...

class RunningBuild(_message.Message):
    __slots__ = ("ref", "age_ms")
    REF_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ref: str
    age_ms: int
    def __init__(self, ref: _Optional[str] = ..., age_ms: _Optional[int] = ...) -> None: ...

class Disk(_message.Message):
    __slots__ = ("look", "total_bytes", "available_bytes", "total_inodes", "available_inodes", "ballast_bytes", "prunes", "last_prune")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_INODES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_INODES_FIELD_NUMBER: _ClassVar[int]
    BALLAST_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRUNES_FIELD_NUMBER: _ClassVar[int]
    LAST_PRUNE_FIELD_NUMBER: _ClassVar[int]
    look: Look
    total_bytes: int
    available_bytes: int
    total_inodes: int
    available_inodes: int
    ballast_bytes: int
    prunes: int
    last_prune: Prune
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., total_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., total_inodes: _Optional[int] = ..., available_inodes: _Optional[int] = ..., ballast_bytes: _Optional[int] = ..., prunes: _Optional[int] = ..., last_prune: _Optional[_Union[Prune, _Mapping]] = ...) -> None: ...

class Prune(_message.Message):
    __slots__ = ("age_ms", "running", "freed_bytes", "removed_records", "error")
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    age_ms: int
    running: bool
    freed_bytes: int
    removed_records: int
    error: str
    def __init__(self, age_ms: _Optional[int] = ..., running: _Optional[bool] = ..., freed_bytes: _Optional[int] = ..., removed_records: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Kills(_message.Message):
    __slots__ = ("look", "machine_oom_kills", "builds_oom_kills", "pressure_kills", "recent")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    MACHINE_OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    BUILDS_OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_KILLS_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    look: Look
    machine_oom_kills: int
    builds_oom_kills: int
    pressure_kills: int
    recent: _containers.RepeatedCompositeFieldContainer[Kill]
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., machine_oom_kills: _Optional[int] = ..., builds_oom_kills: _Optional[int] = ..., pressure_kills: _Optional[int] = ..., recent: _Optional[_Iterable[_Union[Kill, _Mapping]]] = ...) -> None: ...

class Kill(_message.Message):
    __slots__ = ("number", "age_ms", "cause", "step", "memory_bytes", "build_refs")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[Kill.Cause]
        OOM: _ClassVar[Kill.Cause]
        PRESSURE: _ClassVar[Kill.Cause]
    CAUSE_UNSPECIFIED: Kill.Cause
    OOM: Kill.Cause
    PRESSURE: Kill.Cause
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUILD_REFS_FIELD_NUMBER: _ClassVar[int]
    number: int
    age_ms: int
    cause: Kill.Cause
    step: str
    memory_bytes: int
    build_refs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., age_ms: _Optional[int] = ..., cause: _Optional[_Union[Kill.Cause, str]] = ..., step: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., build_refs: _Optional[_Iterable[str]] = ...) -> None: ...

class Network(_message.Message):
    __slots__ = ("look", "under_1m", "under_10m", "under_1h", "over_1h", "more")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    UNDER_1M_FIELD_NUMBER: _ClassVar[int]
    UNDER_10M_FIELD_NUMBER: _ClassVar[int]
    UNDER_1H_FIELD_NUMBER: _ClassVar[int]
    OVER_1H_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    look: Look
    under_1m: int
    under_10m: int
    under_1h: int
    over_1h: int
    more: bool
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., under_1m: _Optional[int] = ..., under_10m: _Optional[int] = ..., under_1h: _Optional[int] = ..., over_1h: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class Boot(_message.Message):
    __slots__ = ("look", "init_ms", "cloud_init_ms", "buildkit_ms", "first_build_ms")
    LOOK_FIELD_NUMBER: _ClassVar[int]
    INIT_MS_FIELD_NUMBER: _ClassVar[int]
    CLOUD_INIT_MS_FIELD_NUMBER: _ClassVar[int]
    BUILDKIT_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BUILD_MS_FIELD_NUMBER: _ClassVar[int]
    look: Look
    init_ms: int
    cloud_init_ms: int
    buildkit_ms: int
    first_build_ms: int
    def __init__(self, look: _Optional[_Union[Look, _Mapping]] = ..., init_ms: _Optional[int] = ..., cloud_init_ms: _Optional[int] = ..., buildkit_ms: _Optional[int] = ..., first_build_ms: _Optional[int] = ...) -> None: ...
