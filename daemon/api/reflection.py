"""Server reflection, v1 and v1alpha: what the daemon serves itself, described for grpcurl and the like."""

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor

from bentpipe.daemon.api.call import Call, Method, decoded
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)

PATHS = tuple(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))


class Reflection:
    """Answers questions about some files, and what they import."""

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        """`files` are those whose services are served."""
        self._files: dict[str, FileDescriptor] = {}
        self._services: list[str] = []
        for file in files:
            self._services += [service.full_name for service in file.services_by_name.values()]
            self._files.update({each.name: each for each in _with_imports(file)})

    @property
    def methods(self) -> dict[str, Method]:
        """Both versions, by path."""
        return dict.fromkeys(PATHS, Method(self._serve))

    async def _serve(self, call: Call) -> None:
        while (message := await call.receive()) is not None:
            await call.send(self.answer(decoded(ServerReflectionRequest, message)))

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Answer one question."""
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [ServiceResponse(name=name) for name in self._services]
                response.list_services_response.CopyFrom(ListServiceResponse(service=services))
            case "file_by_filename":
                self._describe(response, self._files.get(request.file_by_filename))
            case "file_containing_symbol":
                self._describe(response, self._holding(request.file_containing_symbol))
            case "all_extension_numbers_of_type" if self._holding(request.all_extension_numbers_of_type) is not None:
                none = ExtensionNumberResponse(base_type_name=request.all_extension_numbers_of_type)
                response.all_extension_numbers_response.CopyFrom(none)
            case _:
                self._describe(response, None)
        return response

    @staticmethod
    def _describe(response: ServerReflectionResponse, file: FileDescriptor | None) -> None:
        if file is None:
            unknown = ErrorResponse(error_code=GrpcStatus.NOT_FOUND, error_message="not found")
            response.error_response.CopyFrom(unknown)
            return
        described = [each.serialized_pb for each in _with_imports(file)]
        response.file_descriptor_response.CopyFrom(FileDescriptorResponse(file_descriptor_proto=described))

    def _holding(self, symbol: str) -> FileDescriptor | None:
        """The file with a name, or with what the name is inside of (a field in a message, a method in a service)."""
        while symbol:
            for file in self._files.values():
                tops = (file.message_types_by_name, file.enum_types_by_name, file.services_by_name)
                package, _, name = symbol.rpartition(".")
                if package == file.package and any(name in top for top in tops):
                    return file
            symbol = symbol.rpartition(".")[0]
        return None


def _with_imports(file: FileDescriptor) -> list[FileDescriptor]:
    """The file, and all that it imports, directly or not, each once."""
    found: dict[str, FileDescriptor] = {}
    waiting = [file]
    while waiting:
        each = waiting.pop()
        if each.name not in found:
            found[each.name] = each
            waiting += each.dependencies
    return list(found.values())
