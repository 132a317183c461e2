"""What `bentpipe top` says of the whole host."""

import dataclasses

from bentpipe.daemon.service.host_rows import host_look
from bentpipe.proto import operations_pb2 as pb

UNADMITTED = {"no-gate": 7, "no-token": 3, "unusual": 3, "silent": 2, "left": 1, "changed": 1}


def answer(**host: object) -> pb.GetActivityResponse:
    found = pb.GetActivityResponse()
    found.host.connections = "connections live here"
    for name, value in host.items():
        setattr(found.host, name, value)
    return found


def test_a_caller_who_may_not_know_it_sees_nothing() -> None:
    assert host_look(pb.GetActivityResponse()) is None


def test_one_process_has_one_line() -> None:
    look = host_look(answer())
    assert look is not None
    assert look.lines == ["connections live here"]


def test_two_processes_tell_of_planes_and_admissions() -> None:
    told = answer(by_snapshots=True, admitted=1234, gates=2)
    told.host.data_planes.add(name="0123abcd", pid=7, spliced=12)
    told.host.data_planes.add(name="4567cdef", pid=8, spliced=1, draining=True)
    told.host.unadmitted.update(UNADMITTED)
    look = host_look(told)
    assert look is not None
    assert look.lines == [
        "connections live here",
        "data planes: 0123abcd (process 7): 12 spliced; 4567cdef (process 8): 1 spliced, draining",
        "admitted by snapshots 1234, asked 17 (no-gate 7, no-token 3, unusual 3, silent 2, others 2); satellites in reach 2",
    ]
    assert dataclasses.asdict(look)["unadmitted"] == UNADMITTED


def test_asking_is_said() -> None:
    told = answer()
    told.host.data_planes.add(name="0123abcd", pid=7)
    look = host_look(told)
    assert look is not None
    assert look.lines[-1] == "the daemon admits every client"
