"""Names, numbers and types on the wire are those that the Earthly CLI v0.8.15 was built with: none may ever change."""

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from bentpipe.proto import compute_pb2, logstream_pb2

MESSAGES = {
    "LaunchSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "platform", "string"),
        (4, "feature_flags", "repeated string"),
        (5, "size", "string"),
        (6, "version", "string"),
        (7, "maintenance_window_start", "string"),
        (8, "maintenance_weekends_only", "bool"),
        (9, "cloud_name", "string"),
    ],
    "LaunchSatelliteResponse": [
        (1, "status", "SatelliteStatus"),
        (2, "version", "string"),
        (3, "maintenance_window_start", "string"),
        (4, "maintenance_window_end", "string"),
        (5, "revision_id", "int32"),
    ],
    "ListSatellitesRequest": [
        (1, "org_id", "string"),
        (2, "include_hidden", "bool"),
    ],
    "ListSatellitesResponse": [
        (1, "instances", "repeated SatelliteInstance"),
    ],
    "ListSatellitesResponse.SatelliteInstance": [
        (1, "user_id", "string"),
        (2, "name", "string"),
        (3, "platform", "string"),
        (4, "status", "SatelliteStatus"),
        (5, "version", "string"),
        (6, "size", "string"),
        (7, "hidden", "bool"),
        (8, "cache_retention", "google.protobuf.Duration"),
        (9, "last_used", "google.protobuf.Timestamp"),
        (10, "specs", "SatelliteSpecs"),
        (11, "cloud_name", "string"),
    ],
    "SatelliteSpecs": [
        (1, "platform", "string"),
        (2, "vcpus", "int32"),
        (3, "memory_gib", "double"),
        (4, "cache_size_gib", "double"),
        (5, "size", "string"),
        (6, "max_op_load", "int32"),
    ],
    "UpdateSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "version", "string"),
        (4, "drop_cache", "bool"),
        (5, "maintenance_window_start", "string"),
        (6, "feature_flags", "repeated string"),
        (7, "maintenance_weekends_only", "bool"),
        (8, "size", "string"),
        (9, "platform", "string"),
    ],
    "UpdateSatelliteResponse": [],
    "DeleteSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "force", "bool"),
    ],
    "DeleteSatelliteResponse": [],
    "GetSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
    ],
    "GetSatelliteResponse": [
        (1, "user_id", "string"),
        (2, "platform", "string"),
        (3, "status", "SatelliteStatus"),
        (4, "version", "string"),
        (5, "id", "string"),
        (6, "private_ip", "string"),
        (7, "private_dns", "string"),
        (8, "size", "string"),
        (9, "feature_flags", "repeated string"),
        (10, "maintenance_window_start", "string"),
        (11, "maintenance_window_end", "string"),
        (12, "revision_id", "int32"),
        (13, "version_pinned", "bool"),
        (14, "maintenance_weekends_only", "bool"),
        (15, "hidden", "bool"),
        (16, "cache_retention", "google.protobuf.Duration"),
        (17, "last_used", "google.protobuf.Timestamp"),
        (19, "is_managed", "bool"),
        (20, "certificate", "TLSCertificate"),
        (21, "cloud_name", "string"),
        (22, "satellite_address", "string"),
    ],
    "WakeSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "update_interval", "google.protobuf.Duration"),
    ],
    "WakeSatelliteResponse": [
        (1, "status", "SatelliteStatus"),
    ],
    "SleepSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "update_interval", "google.protobuf.Duration"),
    ],
    "SleepSatelliteResponse": [
        (1, "status", "SatelliteStatus"),
    ],
    "ReserveSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "name", "string"),
        (3, "commit_email", "string"),
        (4, "is_ci", "bool"),
        (5, "update_interval", "google.protobuf.Duration"),
        (6, "git_config_email", "string"),
        (7, "metadata", "Metadata"),
    ],
    "ReserveSatelliteRequest.Metadata": [
        (1, "env_entry_names", "repeated string"),
        (2, "cli_version", "string"),
    ],
    "ReserveSatelliteResponse": [
        (1, "status", "SatelliteStatus"),
    ],
    "TLSCertificate": [
        (1, "client_ca", "bytes"),
        (2, "client_ca_key", "bytes"),
        (3, "root_ca", "bytes"),
    ],
    "RegisterSatelliteRequest": [
        (1, "org_id", "string"),
        (2, "satellite_name", "string"),
        (3, "satellite_host", "string"),
        (4, "satellite_port", "int32"),
        (5, "platform", "string"),
        (6, "version", "string"),
        (7, "certificate", "TLSCertificate"),
        (8, "registration_token", "string"),
        (9, "internal_ip", "string"),
    ],
    "RegisterSatelliteResponse": [
        (1, "registration_token", "string"),
    ],
    "DeregisterSatelliteRequest": [
        (1, "registration_token", "string"),
    ],
    "DeregisterSatelliteResponse": [],
    "Session": [
        (1, "id", "string"),
        (2, "type", "SessionType"),
        (3, "started_at", "google.protobuf.Timestamp"),
        (4, "ended_at", "google.protobuf.Timestamp"),
    ],
    "SatelliteHeartbeatRequest": [
        (1, "registration_token", "string"),
        (2, "op_load", "int32"),
        (3, "duration_idle", "google.protobuf.Duration"),
        (4, "session_history", "repeated BuildkitSession"),
        (5, "sessions", "repeated Session"),
    ],
    "SatelliteHeartbeatResponse": [],
    "BuildkitSession": [
        (1, "session_id", "string"),
        (2, "started_at", "google.protobuf.Timestamp"),
        (3, "ended_at", "google.protobuf.Timestamp"),
    ],
}
ENUMS = {
    "SatelliteStatus": [
        (0, "SATELLITE_STATUS_UNKNOWN"),
        (1, "SATELLITE_STATUS_CREATING"),
        (2, "SATELLITE_STATUS_OPERATIONAL"),
        (3, "SATELLITE_STATUS_OFFLINE"),
        (4, "SATELLITE_STATUS_DESTROYING"),
        (5, "SATELLITE_STATUS_FAILED"),
        (6, "SATELLITE_STATUS_SLEEP"),
        (7, "SATELLITE_STATUS_STARTING"),
        (8, "SATELLITE_STATUS_STOPPING"),
        (9, "SATELLITE_STATUS_UPDATING"),
    ],
    "SessionType": [
        (0, "SESSION_TYPE_UNKNOWN"),
        (1, "SESSION_TYPE_BUILDKIT"),
        (2, "SESSION_TYPE_GHA"),
    ],
}
METHODS = {
    "LaunchSatellite": False,
    "ListSatellites": False,
    "UpdateSatellite": False,
    "DeleteSatellite": False,
    "GetSatellite": False,
    "RegisterSatellite": False,
    "DeregisterSatellite": False,
    "SatelliteHeartbeat": False,
    "WakeSatellite": True,
    "SleepSatellite": True,
    "ReserveSatellite": True,
}
"""Whether the answer is a stream."""
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def type_of(field: FieldDescriptor, inside: str) -> str:
    named = field.message_type or field.enum_type
    if named is None:
        name = SCALARS[field.type]
    else:
        name = named.full_name.removeprefix("api.public.compute.").removeprefix(f"{inside}.")
    return f"repeated {name}" if field.is_repeated else name


@pytest.mark.parametrize("name", MESSAGES)
def test_fields(name: str) -> None:
    message = compute_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"api.public.compute.{name}")
    found = [(field.number, field.name, type_of(field, name)) for field in message.fields]
    assert sorted(found) == MESSAGES[name]


@pytest.mark.parametrize("name", ENUMS)
def test_enums(name: str) -> None:
    enum: EnumDescriptor = compute_pb2.DESCRIPTOR.enum_types_by_name[name]
    assert [(value.number, value.name) for value in enum.values] == ENUMS[name]


def test_methods() -> None:
    service = compute_pb2.DESCRIPTOR.services_by_name["Compute"]
    assert service.full_name == "api.public.compute.Compute"
    assert {method.name: method.server_streaming for method in service.methods} == METHODS
    assert not any(method.client_streaming for method in service.methods)
    for method in service.methods:
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")


def test_the_numbers_that_are_reserved() -> None:
    file = FileDescriptorProto.FromString(compute_pb2.DESCRIPTOR.serialized_pb)
    reserved = {
        message.name: [(each.start, each.end) for each in message.reserved_range]
        for message in file.message_type
        if message.reserved_range
    }
    assert reserved == {"GetSatelliteResponse": [(18, 19)]}


def test_the_log_stream() -> None:
    service = logstream_pb2.DESCRIPTOR.services_by_name["LogStream"]
    assert service.full_name == "api.public.logstream.LogStream"
    [method] = service.methods
    assert (method.name, method.client_streaming, method.server_streaming) == ("StreamLogs", True, True)
    assert logstream_pb2.StreamLogRequest(eof=True).SerializeToString() == b"\x18\x01"
    assert logstream_pb2.StreamLogResponse(eof_ack=True).SerializeToString() == b"\x08\x01"
