"""The control plane says which ends of splices it has accounted for: once for all that came in one message."""

import pytest

from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.codec import ProtocolBroken


class SentRecords:
    """Stands for the link: keeps what is sent."""

    def __init__(self) -> None:
        self.records: list[r.Record] = []

    def send_nowait(self, record: r.Record) -> None:
        self.records.append(record)


class Ledger:
    """Stands for the daemon, which can account for all ends but those of one number."""

    def __init__(self, broken: int = 0) -> None:
        self.ended: list[int] = []
        self.broken = broken

    def has_ended(self, plane: RemotePlane, record: r.EndedRecord) -> None:
        if record.seq == self.broken:
            raise ProtocolBroken("as in the test")
        self.ended.append(record.seq)


def made(broken: int = 0) -> tuple[RemotePlane, SentRecords, Ledger]:
    sent, ledger = SentRecords(), Ledger(broken)
    return RemotePlane(sent, 1, ledger), sent, ledger  # type: ignore[arg-type]


def end(seq: int) -> r.EndedRecord:
    return r.EndedRecord(seq + 100, seq, 1, 0, 0, 0, 0, 0, "peer", b"")


def test_all_ends_of_a_message_are_acknowledged_by_the_last_one() -> None:
    plane, sent, ledger = made()
    for ends in ((1, 2, 3), (), (4,)):
        with plane.gather():
            for seq in ends:
                plane.receive(end(seq))
    assert ledger.ended == [1, 2, 3, 4]
    assert sent.records == [r.KeptRecord(r.LINK_ID, 3), r.KeptRecord(r.LINK_ID, 4)]


def test_those_before_a_failure_are_acknowledged_and_no_other() -> None:
    plane, sent, ledger = made(broken=3)

    def receive_all() -> None:
        with plane.gather():
            for seq in (1, 2, 3, 4):
                plane.receive(end(seq))

    with pytest.raises(ProtocolBroken):
        receive_all()
    assert ledger.ended == [1, 2]
    assert sent.records == [r.KeptRecord(r.LINK_ID, 2)]
