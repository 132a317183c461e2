import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SatelliteStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SATELLITE_STATUS_UNKNOWN: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_CREATING: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_OPERATIONAL: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_OFFLINE: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_DESTROYING: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_FAILED: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_SLEEP: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_STARTING: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_STOPPING: _ClassVar[SatelliteStatus]
    SATELLITE_STATUS_UPDATING: _ClassVar[SatelliteStatus]

class SessionType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_TYPE_UNKNOWN: _ClassVar[SessionType]
    SESSION_TYPE_BUILDKIT: _ClassVar[SessionType]
    SESSION_TYPE_GHA: _ClassVar[SessionType]
SATELLITE_STATUS_UNKNOWN: SatelliteStatus
SATELLITE_STATUS_CREATING: SatelliteStatus
SATELLITE_STATUS_OPERATIONAL: SatelliteStatus
SATELLITE_STATUS_OFFLINE: SatelliteStatus
SATELLITE_STATUS_DESTROYING: SatelliteStatus
SATELLITE_STATUS_FAILED: SatelliteStatus
SATELLITE_STATUS_SLEEP: SatelliteStatus
SATELLITE_STATUS_STARTING: SatelliteStatus
SATELLITE_STATUS_STOPPING: SatelliteStatus
SATELLITE_STATUS_UPDATING: SatelliteStatus
SESSION_TYPE_UNKNOWN: SessionType
SESSION_TYPE_BUILDKIT: SessionType
SESSION_TYPE_GHA: SessionType

class LaunchSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "platform", "feature_flags", "size", "version", "maintenance_window_start", "maintenance_weekends_only", "cloud_name")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WEEKENDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    CLOUD_NAME_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    platform: str
    feature_flags: _containers.RepeatedScalarFieldContainer[str]
    size: str
    version: str
    maintenance_window_start: str
    maintenance_weekends_only: bool
    cloud_name: str
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., platform: _Optional[str] = ..., feature_flags: _Optional[_Iterable[str]] = ..., size: _Optional[str] = ..., version: _Optional[str] = ..., maintenance_window_start: _Optional[str] = ..., maintenance_weekends_only: _Optional[bool] = ..., cloud_name: _Optional[str] = ...) -> None: ...

class LaunchSatelliteResponse(_message.Message):
    __slots__ = ("status", "version", "maintenance_window_start", "maintenance_window_end", "revision_id")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_END_FIELD_NUMBER: _ClassVar[int]
    REVISION_ID_FIELD_NUMBER: _ClassVar[int]
    status: SatelliteStatus
    version: str
    maintenance_window_start: str
    maintenance_window_end: str
    revision_id: int
    def __init__(self, status: _Optional[_Union[SatelliteStatus, str]] = ..., version: _Optional[str] = ..., maintenance_window_start: _Optional[str] = ..., maintenance_window_end: _Optional[str] = ..., revision_id: _Optional[int] = ...) -> None: ...

class ListSatellitesRequest(_message.Message):
    __slots__ = ("org_id", "include_hidden")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_HIDDEN_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    include_hidden: bool
    def __init__(self, org_id: _Optional[str] = ..., include_hidden: _Optional[bool] = ...) -> None: ...

class ListSatellitesResponse(_message.Message):
    __slots__ = ("instances",)
    class SatelliteInstance(_message.Message):
        __slots__ = ("user_id", "name", "platform", "status", "version", "size", "hidden", "cache_retention", "last_used", "specs", "cloud_name")
        USER_ID_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        PLATFORM_FIELD_NUMBER: _ClassVar[int]
        STATUS_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        HIDDEN_FIELD_NUMBER: _ClassVar[int]
        CACHE_RETENTION_FIELD_NUMBER: _ClassVar[int]
        LAST_USED_FIELD_NUMBER: _ClassVar[int]
        SPECS_FIELD_NUMBER: _ClassVar[int]
        CLOUD_NAME_FIELD_NUMBER: _ClassVar[int]
        user_id: str
        name: str
        platform: str
        status: SatelliteStatus
        version: str
        size: str
        hidden: bool
        cache_retention: _duration_pb2.Duration
        last_used: _timestamp_pb2.Timestamp
        specs: SatelliteSpecs
        cloud_name: str
        def __init__(self, user_id: _Optional[str] = ..., name: _Optional[str] = ..., platform: _Optional[str] = ..., status: _Optional[_Union[SatelliteStatus, str]] = ..., version: _Optional[str] = ..., size: _Optional[str] = ..., hidden: _Optional[bool] = ..., cache_retention: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., specs: _Optional[_Union[SatelliteSpecs, _Mapping]] = ..., cloud_name: _Optional[str] = ...) -> None: ...
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[ListSatellitesResponse.SatelliteInstance]
    def __init__(self, instances: _Optional[_Iterable[_Union[ListSatellitesResponse.SatelliteInstance, _Mapping]]] = ...) -> None: ...

class SatelliteSpecs(_message.Message):
    __slots__ = ("platform", "vcpus", "memory_gib", "cache_size_gib", "size", "max_op_load")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    VCPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_GIB_FIELD_NUMBER: _ClassVar[int]
    CACHE_SIZE_GIB_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_OP_LOAD_FIELD_NUMBER: _ClassVar[int]
    platform: str
    vcpus: int
    memory_gib: float
    cache_size_gib: float
    size: str
    max_op_load: int
    def __init__(self, platform: _Optional[str] = ..., vcpus: _Optional[int] = ..., memory_gib: _Optional[float] = ..., cache_size_gib: _Optional[float] = ..., size: _Optional[str] = ..., max_op_load: _Optional[int] = ...) -> None: ...

class UpdateSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "version", "drop_cache", "maintenance_window_start", "feature_flags", "maintenance_weekends_only", "size", "platform")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DROP_CACHE_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WEEKENDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    version: str
    drop_cache: bool
    maintenance_window_start: str
    feature_flags: _containers.RepeatedScalarFieldContainer[str]
    maintenance_weekends_only: bool
    size: str
    platform: str
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., drop_cache: _Optional[bool] = ..., maintenance_window_start: _Optional[str] = ..., feature_flags: _Optional[_Iterable[str]] = ..., maintenance_weekends_only: _Optional[bool] = ..., size: _Optional[str] = ..., platform: _Optional[str] = ...) -> None: ...

class UpdateSatelliteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "force")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    force: bool
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class DeleteSatelliteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GetSatelliteResponse(_message.Message):
    __slots__ = ("user_id", "platform", "status", "version", "id", "private_ip", "private_dns", "size", "feature_flags", "maintenance_window_start", "maintenance_window_end", "revision_id", "version_pinned", "maintenance_weekends_only", "hidden", "cache_retention", "last_used", "is_managed", "certificate", "cloud_name", "satellite_address")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_IP_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_DNS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WINDOW_END_FIELD_NUMBER: _ClassVar[int]
    REVISION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_PINNED_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_WEEKENDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    CACHE_RETENTION_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    IS_MANAGED_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CLOUD_NAME_FIELD_NUMBER: _ClassVar[int]
    SATELLITE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    platform: str
    status: SatelliteStatus
    version: str
    id: str
    private_ip: str
    private_dns: str
    size: str
    feature_flags: _containers.RepeatedScalarFieldContainer[str]
    maintenance_window_start: str
    maintenance_window_end: str
    revision_id: int
    version_pinned: bool
    maintenance_weekends_only: bool
    hidden: bool
    cache_retention: _duration_pb2.Duration
    last_used: _timestamp_pb2.Timestamp
    is_managed: bool
    certificate: TLSCertificate
    cloud_name: str
    satellite_address: str
    def __init__(self, user_id: _Optional[str] = ..., platform: _Optional[str] = ..., status: _Optional[_Union[SatelliteStatus, str]] = ..., version: _Optional[str] = ..., id: _Optional[str] = ..., private_ip: _Optional[str] = ..., private_dns: _Optional[str] = ..., size: _Optional[str] = ..., feature_flags: _Optional[_Iterable[str]] = ..., maintenance_window_start: _Optional[str] = ..., maintenance_window_end: _Optional[str] = ..., revision_id: _Optional[int] = ..., version_pinned: _Optional[bool] = ..., maintenance_weekends_only: _Optional[bool] = ..., hidden: _Optional[bool] = ..., cache_retention: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., is_managed: _Optional[bool] = ..., certificate: _Optional[_Union[TLSCertificate, _Mapping]] = ..., cloud_name: _Optional[str] = ..., satellite_address: _Optional[str] = ...) -> None: ...

class WakeSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "update_interval")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    update_interval: _duration_pb2.Duration
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., update_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WakeSatelliteResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: SatelliteStatus
    def __init__(self, status: _Optional[_Union[SatelliteStatus, str]] = ...) -> None: ...

class SleepSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "update_interval")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    update_interval: _duration_pb2.Duration
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., update_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SleepSatelliteResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: SatelliteStatus
    def __init__(self, status: _Optional[_Union[SatelliteStatus, str]] = ...) -> None: ...

class ReserveSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "name", "commit_email", "is_ci", "update_interval", "git_config_email", "metadata")
    class Metadata(_message.Message):
        __slots__ = ("env_entry_names", "cli_version")
        ENV_ENTRY_NAMES_FIELD_NUMBER: _ClassVar[int]
        CLI_VERSION_FIELD_NUMBER: _ClassVar[int]
        env_entry_names: _containers.RepeatedScalarFieldContainer[str]
        cli_version: str
        def __init__(self, env_entry_names: _Optional[_Iterable[str]] = ..., cli_version: _Optional[str] = ...) -> None: ...
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMMIT_EMAIL_FIELD_NUMBER: _ClassVar[int]
    IS_CI_FIELD_NUMBER: _ClassVar[int]
    UPDATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    GIT_CONFIG_EMAIL_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    name: str
    commit_email: str
    is_ci: bool
    update_interval: _duration_pb2.Duration
    git_config_email: str
    metadata: ReserveSatelliteRequest.Metadata
    def __init__(self, org_id: _Optional[str] = ..., name: _Optional[str] = ..., commit_email: _Optional[str] = ..., is_ci: _Optional[bool] = ..., update_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., git_config_email: _Optional[str] = ..., metadata: _Optional[_Union[ReserveSatelliteRequest.Metadata, _Mapping]] = ...) -> None: ...

class ReserveSatelliteResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: SatelliteStatus
    def __init__(self, status: _Optional[_Union[SatelliteStatus, str]] = ...) -> None: ...

class TLSCertificate(_message.Message):
    __slots__ = ("client_ca", "client_ca_key", "root_ca")
    CLIENT_CA_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CA_KEY_FIELD_NUMBER: _ClassVar[int]
    ROOT_CA_FIELD_NUMBER: _ClassVar[int]
    client_ca: bytes
    client_ca_key: bytes
    root_ca: bytes
    def __init__(self, client_ca: _Optional[bytes] = ..., client_ca_key: _Optional[bytes] = ..., root_ca: _Optional[bytes] = ...) -> None: ...

class RegisterSatelliteRequest(_message.Message):
    __slots__ = ("org_id", "satellite_name", "satellite_host", "satellite_port", "platform", "version", "certificate", "registration_token", "internal_ip")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    SATELLITE_NAME_FIELD_NUMBER: _ClassVar[int]
    SATELLITE_HOST_FIELD_NUMBER: _ClassVar[int]
    SATELLITE_PORT_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    REGISTRATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_IP_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    satellite_name: str
    satellite_host: str
    satellite_port: int
    platform: str
    version: str
    certificate: TLSCertificate
    registration_token: str
    internal_ip: str
    def __init__(self, org_id: _Optional[str] = ..., satellite_name: _Optional[str] = ..., satellite_host: _Optional[str] = ..., satellite_port: _Optional[int] = ..., platform: _Optional[str] = ..., version: _Optional[str] = ..., certificate: _Optional[_Union[TLSCertificate, _Mapping]] = ..., registration_token: _Optional[str] = ..., internal_ip: _Optional[str] = ...) -> None: ...

class RegisterSatelliteResponse(_message.Message):
    __slots__ = ("registration_token",)
    REGISTRATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    registration_token: str
    def __init__(self, registration_token: _Optional[str] = ...) -> None: ...

class DeregisterSatelliteRequest(_message.Message):
    __slots__ = ("registration_token",)
    REGISTRATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    registration_token: str
    def __init__(self, registration_token: _Optional[str] = ...) -> None: ...

class DeregisterSatelliteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "type", "started_at", "ended_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: SessionType
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., type: _Optional[_Union[SessionType, str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SatelliteHeartbeatRequest(_message.Message):
    __slots__ = ("registration_token", "op_load", "duration_idle", "session_history", "sessions")
    REGISTRATION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OP_LOAD_FIELD_NUMBER: _ClassVar[int]
    DURATION_IDLE_FIELD_NUMBER: _ClassVar[int]
    SESSION_HISTORY_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    registration_token: str
    op_load: int
    duration_idle: _duration_pb2.Duration
    session_history: _containers.RepeatedCompositeFieldContainer[BuildkitSession]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, registration_token: _Optional[str] = ..., op_load: _Optional[int] = ..., duration_idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., session_history: _Optional[_Iterable[_Union[BuildkitSession, _Mapping]]] = ..., sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class SatelliteHeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BuildkitSession(_message.Message):
    __slots__ = ("session_id", "started_at", "ended_at")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    def __init__(self, session_id: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
