"""The call object both doors share."""

import logging
import re

import pytest

from alexnet_server.call import Call, Calls, current
from alexnet_server.telemetry import logs
from alexnet_server.telemetry.metrics import Metrics


def opened(calls: Calls, headers: dict[str, str]) -> Call:
    with calls.open("POST /classify", headers, "POST", {}) as call:
        assert current.get() is call
        assert logs.request_id.get() == call.request_id
    assert logs.request_id.get() is None
    return call


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "é"])
def test_a_request_id_is_kept_or_made(door, bad):
    calls = Calls(door, Metrics())
    assert opened(calls, {"x-request-id": "x" * 128}).request_id == "x" * 128
    made = {opened(calls, {"x-request-id": bad}).request_id for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_server_timing_ends_with_the_total():
    call = Call("/m", "1", stages=(("decode", 0.0015), ("engine", 0.002)))
    assert re.fullmatch(r"decode;dur=1\.50, engine;dur=2\.00, total;dur=\d+\.\d\d", call.server_timing())


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize(
    ("code", "level"),
    [
        ("ok", None),
        ("cancelled", None),
        ("invalid_request", None),
        ("overloaded", None),
        ("unavailable", logging.WARNING),
        ("deadline_exceeded", logging.WARNING),
        ("internal", logging.WARNING),
    ],
)
def test_failures_of_ours_are_logged_whichever_the_door(door, code, level, caplog):
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    for access_log in (False, True):
        with Calls(door, metrics, access_log=access_log).open("/m", {}, "m", {}) as call:
            call.code, call.model = code, "alexnet"
    logged = [record.levelno for record in caplog.records]
    assert logged == [logging.INFO if level is None else level] * (1 if level is None else 2)
    counted = {"door": door, "model": "alexnet", "code": code}
    assert metrics.registry.get_sample_value("alexnet_requests_total", counted) == 2
