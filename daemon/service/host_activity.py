"""How the host takes clients, as the answer for `bentpipe top` has it: connections, data planes, admissions by snapshots."""

from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.edge.gatekeeper import Gatekeeper
from bentpipe.daemon.service.plane_form import PlaneForm
from bentpipe.daemon.service.planes import Planes
from bentpipe.proto import operations_pb2 as pb


def host_activity(
    form: PlaneForm, planes: Planes | None, gatekeeper: Gatekeeper | None, counters: ConnectionCounters
) -> pb.HostActivity:
    """Look at the daemon's parts."""
    told = pb.HostActivity(connections=form.words)
    if planes is None or gatekeeper is None:
        return told
    for plane in planes.splicer:
        if plane.hello is not None:
            spliced, draining = plane.counters.get("spliced", 0), bool(plane.counters.get("draining"))
            name, pid = plane.hello.plane, plane.hello.pid
            told.data_planes.add(name=name, pid=pid, spliced=spliced, draining=draining)
    told.by_snapshots, told.admitted, told.gates = gatekeeper.enabled, gatekeeper.admitted, len(gatekeeper.open_gates)
    told.unadmitted.update({reason: count for reason, count in counters.unadmitted.items() if count})
    return told
