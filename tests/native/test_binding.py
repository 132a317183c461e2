"""The binding says what include/bp.h says: the same functions, and the same numbers behind the same names."""

import inspect
import re
from pathlib import Path

from bentpipe.daemon.planes import bounds
from bentpipe.native import admission, first_settings, greeting, lane, request, tls
from bentpipe.native.engine import EndReason, Ktls
from bentpipe.native.joiner import NewsFlag, StreamFailure
from bentpipe.native.lib import Lib
from bentpipe.native.opener import OpeningStep
from bentpipe.proto import limits
from bentpipe.proto.request import TOKEN_BYTES
from bentpipe.proto.states import State
from bentpipe.proto.trace_context import TRACEPARENT_BYTES, TRACESTATE_BYTES

HEADER = (Path(__file__).parents[2] / "native" / "include" / "bp.h").read_text()
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)


def constants(name: str) -> dict[str, int]:
    """Names and values of an enum; what has no value of its own counts on."""
    [body] = re.findall(rf"enum {name} {{(.*?)}}", CODE, flags=re.DOTALL)
    found: dict[str, int] = {}
    for entry in filter(None, (part.strip() for part in body.split(","))):
        word, _, value = (part.strip() for part in entry.partition("="))
        found[word] = int(value) if value else max(found.values(), default=-1) + 1
    return found


def test_every_function_is_bound() -> None:
    declared = set(re.findall(r"\b(bp_\w+)\(", CODE))
    bound = {name for name, _ in inspect.getmembers(Lib, inspect.isfunction) if name.startswith("bp_")}
    assert bound == declared


def test_end_reasons_are_those_of_the_engine() -> None:
    reasons = constants("bp_reason")
    last, live = reasons.pop("BP_REASONS"), reasons.pop("BP_LIVE")
    assert {f"BP_{reason.name}": reason.value for reason in EndReason} == reasons
    assert (live, last) == (0, len(EndReason) + 1)


def test_results_and_flags_are_those_of_the_engine() -> None:
    assert constants("bp_tls_result") == {
        "BP_TLS_WANT_READ": tls.WANT_READ,
        "BP_TLS_WANT_WRITE": tls.WANT_WRITE,
        "BP_TLS_TRUNCATED": tls.TRUNCATED,
        "BP_TLS_ERROR": tls.FAILED,
        "BP_TLS_CONTROL_FLOOD": tls.CONTROL_FLOOD,
        "BP_TLS_HANDSHAKE_FLOOD": tls.HANDSHAKE_FLOOD,
    }
    meter = (Path(__file__).parents[2] / "native" / "src" / "tls_meter.c").read_text()
    assert all(f"#define {name} " in meter for name in tls.LIMITS.values())
    assert constants("bp_ktls") == {"BP_KTLS_TX": Ktls.TX, "BP_KTLS_RX": Ktls.RX}


def test_the_steps_of_an_opening_are_those_of_the_opener() -> None:
    steps = {f"BP_OPENING_{step.name}": step.value for step in OpeningStep}
    assert constants("bp_opening_step") == steps


def test_the_news_of_a_stream_are_those_of_the_joiner() -> None:
    assert constants("bp_news_flag") == {f"BP_NEWS_{flag.name}": flag.value for flag in NewsFlag}
    assert constants("bp_stream_failure") == {f"BP_STREAM_{failure.name}": failure.value for failure in StreamFailure}


def test_the_limits_of_a_greeting_are_those_of_proto() -> None:
    declared = constants("bp_limit")
    assert declared.pop("BP_LIMITS") == 1 + len(greeting.LIMITS)
    assert declared.pop("BP_LIMIT_NONE") == 0
    assert {f"BP_LIMIT_{name}": number for number, name in enumerate(greeting.LIMITS, 1)} == declared
    assert all(isinstance(getattr(limits, name), int | float) for name in greeting.LIMITS)


def test_the_numbers_of_a_greeting_are_those_of_the_engine() -> None:
    states = {f"BP_GREETING_{state.name}": number for number, state in enumerate(State)}
    assert constants("bp_greeting_state") == states
    verdicts = {f"BP_GREETING_{verdict.name}": verdict.value for verdict in greeting.GreetingVerdict}
    assert constants("bp_greeting_verdict") == verdicts
    assert constants("bp_greeting_sizes")["BP_GREETING_STREAMS"] == greeting.STREAMS


def test_the_first_settings_are_those_of_the_engine() -> None:
    verdicts = {f"BP_FIRST_SETTINGS_{verdict.name}": verdict.value for verdict in first_settings.SettingsVerdict}
    assert constants("bp_first_settings") == verdicts
    assert constants("bp_first_settings_sizes") == {
        "BP_SERVER_SETTINGS_BYTES": limits.FRAME_BYTES,
        "BP_SETTINGS_ADDED_BYTES": first_settings.ADDED_BYTES,
    }


def test_the_numbers_of_an_admission_are_those_of_the_engine() -> None:
    verdicts = {f"BP_{verdict.name}": verdict.value for verdict in admission.Entering}
    assert verdicts == constants("bp_entering")
    assert constants("bp_admission_sizes") == {
        "BP_GRANTED_TOKENS": admission.GRANTED_TOKENS,
        "BP_PAYERS": admission.PAYERS,
        "BP_GATES_OPEN": admission.GATES_OPEN,
        "BP_GATE_INODES": admission.GATE_INODES,
        "BP_TLS_NAME_BYTES": admission.TLS_NAME_BYTES,
        "BP_ADDRESS_BYTES": admission.ADDRESS_BYTES,
    }
    assert constants("bp_lane_sizes") == {
        "BP_LANE_REMOVED": lane.REMOVED,
        "BP_LANE_MOMENTS": lane.MOMENTS,
        "BP_TLS_VERSION_BYTES": lane.TLS_VERSION_BYTES,
    }
    assert (bounds.GRANTED_TOKENS, bounds.GATES_OPEN) == (admission.GRANTED_TOKENS, admission.GATES_OPEN)
    assert bounds.INODES_A_GATE == admission.GATE_INODES


def test_the_bounds_of_a_request_are_those_of_proto() -> None:
    assert constants("bp_request_sizes") == {
        "BP_SATELLITE_NAME_BYTES": request.NAME_BYTES,
        "BP_TOKEN_BYTES": request.TOKEN_BYTES,
        "BP_DIGEST_BYTES": request.DIGEST_BYTES,
        "BP_TRACEPARENT_BYTES": request.TRACEPARENT_BYTES,
        "BP_TRACESTATE_BYTES": request.TRACESTATE_BYTES,
    }
    assert request.TOKEN_BYTES == TOKEN_BYTES
    assert (request.TRACEPARENT_BYTES, request.TRACESTATE_BYTES) == (TRACEPARENT_BYTES, TRACESTATE_BYTES)
