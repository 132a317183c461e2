"""Server reflection as grpcurl uses it: a client that knows no message learns to call GetSatellite."""

from collections.abc import AsyncIterator

import grpc
import pytest
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from beds.hosts.api_host import ApiHost, People, Person
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api.reflection import PATHS, Reflection
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.proto import compute_pb2, logstream_pb2
from bentpipe.proto.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

FILES = [compute_pb2.DESCRIPTOR, logstream_pb2.DESCRIPTOR]
Question = ServerReflectionRequest


@pytest.fixture
async def host() -> AsyncIterator[ApiHost]:
    people = People({"anna": Person("anna", {("acme", "*"): frozenset({Scope.USE})})})
    made = ApiHost(Reflection(FILES).methods, people)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_knows_nothing_learns_every_message(host: ApiHost, path: str) -> None:
    questions = [
        Question(list_services=""),
        Question(file_containing_symbol="api.public.compute.Compute"),
        Question(file_containing_symbol="api.public.logstream.LogStream"),
    ]

    def ask() -> list[ServerReflectionResponse]:
        with grpc.insecure_channel("{}:{}".format(*host.address)) as channel:
            call = channel.stream_stream(
                path,
                request_serializer=ServerReflectionRequest.SerializeToString,
                response_deserializer=ServerReflectionResponse.FromString,
            )
            return list(call(iter(questions), metadata=[("authorization", "Bearer anna")], timeout=20))

    services, *files = await trio.to_thread.run_sync(ask)
    assert [service.name for service in services.list_services_response.service] == [
        "api.public.compute.Compute",
        "api.public.logstream.LogStream",
    ]
    pool = DescriptorPool()
    found = {}
    for answer in files:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            found[file.name] = file
    for name in sorted(found, key=lambda name: len(found[name].dependency)):
        pool.Add(found[name])
    request = GetMessageClass(pool.FindMessageTypeByName("api.public.compute.GetSatelliteRequest"))
    ours = compute_pb2.GetSatelliteRequest(org_id="acme", name="a")
    assert request(org_id="acme", name="a").SerializeToString() == ours.SerializeToString()


def test_a_satellite_that_is_named_is_asked_itself() -> None:
    """BuildKit has server reflection too."""
    api = ControlApi({}, People({}), ConnectionCounters(), 600.0)
    for path in map(str.encode, PATHS):
        assert api.takes(path, names_satellite=False)
        assert not api.takes(path, names_satellite=True)
    assert api.takes(b"/api.public.compute.Compute/GetSatellite", names_satellite=True)


@pytest.mark.parametrize(
    ("question", "file"),
    [
        (Question(file_by_filename="bentpipe/proto/compute.proto"), "bentpipe/proto/compute.proto"),
        (Question(file_by_filename="google/protobuf/timestamp.proto"), "google/protobuf/timestamp.proto"),
        (Question(file_containing_symbol="api.public.compute.SatelliteStatus"), "bentpipe/proto/compute.proto"),
        (Question(file_containing_symbol="api.public.compute.Compute.GetSatellite"), "bentpipe/proto/compute.proto"),
        (Question(file_containing_symbol="google.protobuf.Duration"), "google/protobuf/duration.proto"),
    ],
)
def test_questions_that_have_an_answer(question: Question, file: str) -> None:
    answer = Reflection(FILES).answer(question)
    first = answer.file_descriptor_response.file_descriptor_proto[0]
    assert FileDescriptorProto.FromString(first).name == file
    assert answer.original_request == question


@pytest.mark.parametrize(
    "question",
    [
        Question(file_by_filename="bentpipe/proto/reflection.proto"),
        Question(file_containing_symbol="bentpipe.reflection.ErrorResponse"),
        Question(file_containing_symbol=""),
        Question(all_extension_numbers_of_type="no.such.Type"),
        Question(file_containing_extension={"containing_type": "x", "extension_number": 1}),
        Question(),
    ],
)
def test_questions_without_one(question: Question) -> None:
    assert Reflection(FILES).answer(question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_no_message_has_extensions() -> None:
    answer = Reflection(FILES).answer(Question(all_extension_numbers_of_type="api.public.compute.Session"))
    assert answer.all_extension_numbers_response.base_type_name == "api.public.compute.Session"
    assert list(answer.all_extension_numbers_response.extension_number) == []
