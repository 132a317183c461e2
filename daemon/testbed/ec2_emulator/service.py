"""Answers one API request: limits, scripted faults, the action itself, and the log of it. Speaks no HTTP."""

import time

from bentpipe.daemon.testbed.ec2_emulator.actions import ACTIONS
from bentpipe.daemon.testbed.ec2_emulator.changes import CHANGES
from bentpipe.daemon.testbed.ec2_emulator.cloud import ApiCall, Cloud
from bentpipe.daemon.testbed.ec2_emulator.faults import InjectedFault
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError, Params, answer, check_known, error_answer, strings

ALL_ACTIONS = ACTIONS | CHANGES


class ConnectionReset(Exception):
    """The connection must be broken instead of an answer."""


def handle(cloud: Cloud, params: Params, principal: str) -> tuple[int, bytes]:
    """Status and body. Raises Reset. May wait, as the script says."""
    action = params.get("Action", "")
    ids = tuple(strings(params, "InstanceId"))
    changes: list[tuple[str, str, str]] = []
    outcome = "ok"
    try:
        fault = _before(cloud, action, params, ids)
        if fault is not None and fault.foreign_body is not None:
            outcome = "foreign"
            return 200, fault.foreign_body.encode()
        with cloud.lock:
            cloud.settle()
            before = {each.instance_id: each.state.label for each in cloud.instances.values()}
            body = answer(action, ALL_ACTIONS[action].run(cloud, params))
            if action == "RunInstances":
                ids = tuple(each for each in cloud.instances if each not in before)
            for instance_id in ids:
                after = cloud.instances[instance_id].state.label
                if before.get(instance_id) != after:
                    changes.append((instance_id, before.get(instance_id, ""), after))
        cloud.faults.wait_released(action, after=True)
        if fault is not None and fault.reset_after:
            raise ConnectionReset
    except ApiError as error:
        outcome = error.code
        return error.status, error_answer(error)
    except ConnectionReset:
        outcome = "reset"
        raise
    else:
        return 200, body
    finally:
        token = params.get("ClientToken", "")
        with cloud.lock:
            cloud.calls.append(ApiCall(cloud.clock.now(), action, ids, outcome, principal, tuple(changes), token))


def _before(cloud: Cloud, action: str, params: Params, ids: tuple[str, ...]) -> InjectedFault | None:
    """Check names, limits and the script, before the action itself. Raises ApiError, Reset."""
    if action not in ALL_ACTIONS:
        raise ApiError("InvalidAction", f"The action {action} is not valid for this web service.")
    check_known(action, params, ALL_ACTIONS[action].parameters)
    cloud.faults.wait_released(action, after=False)
    paginated = not action.startswith("Describe") or set(params) > {"Action", "Version"}
    with cloud.lock:
        cloud.limits.check(action, max(1, len(ids)), paginated=paginated)
    fault = cloud.faults.take(action, ids)
    if fault is not None:
        time.sleep(fault.delay_s)
        if fault.error is not None:
            raise fault.error
        if fault.reset_before:
            raise ConnectionReset
    return fault
