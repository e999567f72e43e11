"""What a call is apart from making it."""

import random

import grpc
import pytest

from alexnet_client import _call, errors


class Broken(grpc.RpcError):
    def __init__(self, status, details="as told", **trailers):
        self._status, self._details = status, details
        self._trailers = tuple((key.replace("_", "-"), value) for key, value in trailers.items())

    def code(self):
        return self._status

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailers


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_request", grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        ("unauthenticated", grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        ("unknown_model", grpc.StatusCode.NOT_FOUND, errors.UnknownModel),
        ("too_large", grpc.StatusCode.INVALID_ARGUMENT, errors.TooLarge),
        ("unsupported_format", grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidImage),
        ("undecodable", grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidImage),
        ("overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        ("unavailable", grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        ("deadline_exceeded", grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        ("internal", grpc.StatusCode.INTERNAL, errors.ServerError),
        ("of_a_later_version", grpc.StatusCode.INVALID_ARGUMENT, errors.ServerError),
    ],
)
def test_the_servers_code_decides(code, status, kind):
    error = _call.error_from(Broken(status, "mend it", x_error_code=code, x_request_id="r-1"))
    assert type(error) is kind
    assert (str(error), error.code, error.request_id) == ("mend it", code, "r-1")


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Received message larger than max (9 vs. 8)",
            errors.TooLarge,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Decompressed message larger than max", errors.TooLarge),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded),
        (grpc.StatusCode.PERMISSION_DENIED, "no", errors.Unauthenticated),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", errors.ServerError),
        (grpc.StatusCode.UNKNOWN, "", errors.ServerError),
    ],
)
def test_without_the_servers_code_the_status_decides(status, details, kind):
    error = _call.error_from(Broken(status, details))
    assert type(error) is kind
    assert error.retry_after_s is None
    assert str(error)


def test_another_service_at_the_address_is_named():
    error = _call.error_from(Broken(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
    assert "does not speak alexnet.v1" in str(error)


def overloaded(pushback_ms):
    trailers = {} if pushback_ms is None else {"grpc_retry_pushback_ms": pushback_ms}
    failure = Broken(grpc.StatusCode.RESOURCE_EXHAUSTED, x_error_code="overloaded", **trailers)
    return _call.error_from(failure)


def test_overload_is_waited_out_with_jitter():
    random.seed(0)
    delays = [_call.Attempts(10, 2).delay_s(overloaded("400")) for _ in range(50)]
    assert all(0.4 <= delay <= 0.5 for delay in delays)
    assert len(set(delays)) > 40


@pytest.mark.parametrize("pushback_ms", [None, "-1", "soon", ""])
def test_overload_without_a_wait_is_not_repeated(pushback_ms):
    with pytest.raises(errors.Overloaded) as caught:
        _call.Attempts(10, 4).delay_s(overloaded(pushback_ms))
    assert caught.value.retry_after_s is None


def test_a_wait_beyond_the_deadline_is_not_begun():
    with pytest.raises(errors.Overloaded) as caught:
        _call.Attempts(1, 4).delay_s(overloaded("1000"))
    assert caught.value.retry_after_s == 1.0


def test_attempts_end():
    attempts = _call.Attempts(10, 3)
    attempts.delay_s(overloaded("1"))
    attempts.delay_s(overloaded("1"))
    with pytest.raises(errors.Overloaded):
        attempts.delay_s(overloaded("1"))


def test_waits_for_an_absent_server_grow_to_a_bound():
    gone = errors.Unavailable("gone", code="unavailable")
    waits = [_call.retry_delay_s(gone, tries) for tries in (1, 2, 3, 10, 5000)]
    for wait, least in zip(waits, (0.1, 0.2, 0.4, 5.0, 5.0), strict=True):
        assert least <= wait <= 1.25 * least


def test_a_closed_client_is_not_tried_again():
    assert _call.retry_delay_s(_call.closed(), 1) is None


@pytest.mark.parametrize("api_key", ["", " key", "key\n", "schlüssel", "a\x00b"])
def test_a_key_that_cannot_travel_is_refused(api_key):
    with pytest.raises(ValueError, match="printable ASCII"):
        _call.metadata(api_key)


@pytest.mark.parametrize("attempts", [0, 6, -1])
def test_attempts_have_bounds(attempts):
    with pytest.raises(ValueError, match="1 to 5"):
        _call.channel_options("localhost:8081", attempts)


def test_views_and_model_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        _call.selection(5, "ten", "alexnet")
    with pytest.raises(ValueError, match="center, ten, dense"):
        _call.selection(5, "eleven", None)


def test_every_code_of_the_servers_table_has_its_exception():
    table = pytest.importorskip("alexnet_server.errors").TABLE
    assert set(table) <= set(errors.BY_CODE)
