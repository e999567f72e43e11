"""The bookkeeping of `classify_many`, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_client import errors
from alexnet_client._many import WINDOW_BYTES, Many
from alexnet_client.pb import classifier_pb2 as pb


def photo(label=b"photo"):
    return pb.ClassifyRequest(image=pb.Image(encoded=label))


def answer(request):
    prediction = pb.Prediction(rank=1, label=request.image.encoded.decode())
    return pb.ClassifyResponse(predictions=[prediction])


def many(window=8, timeout_s=10.0, retry=True, photos=0):
    made = Many(window=window, timeout_s=timeout_s, retry=retry)
    for number in range(photos):
        add(made, photo(b"%d" % number))
    return made


def add(work, request):
    work.room.read(request)
    work.add(request)


def settle(work, call):
    """Answer a call of `work.calls`."""
    entry, request, _timeout_s = call
    work.answered(entry, answer(request))


def fail(work, call, error, now, at=None):
    work.failed(call[0], error, now if at is None else at, now)


def taken(work):
    outcomes = []
    while (outcome := work.take()) is not None:
        outcomes.append(outcome)
    return outcomes


def labels(outcomes):
    return [outcome.top.label for outcome in outcomes]


UNAVAILABLE = errors.Unavailable("gone", code="unavailable")


def overloaded(retry_after_s=None):
    return errors.Overloaded("full", code="overloaded", retry_after_s=retry_after_s)


def test_answers_out_of_order_come_out_in_order():
    work = many(photos=3)
    first, second, third = work.calls(0.0)
    assert list(work.calls(0.0)) == []
    settle(work, third)
    settle(work, second)
    assert work.take() is None
    settle(work, first)
    assert labels(taken(work)) == ["0", "1", "2"]
    assert not work.done
    work.end()
    assert work.done


def test_the_window_counts_what_is_not_taken():
    work = many(window=2, photos=2)
    assert not work.room.free
    for call in list(work.calls(0.0)):
        settle(work, call)
    assert not work.room.free
    taken(work)
    assert work.room.free


def test_the_window_is_bounded_in_bytes_too():
    work = many(window=100)
    add(work, photo(bytes(WINDOW_BYTES)))
    assert not work.room.free
    (call,) = work.calls(0.0)
    fail(work, call, errors.TooLarge("large", code="too_large"), 0.1)
    assert work.room.free
    assert isinstance(work.take(), errors.TooLarge)


def test_an_unreadable_photo_takes_its_turn():
    work = many(photos=1)
    unreadable = errors.InvalidImage("no such file", code="unreadable")
    add(work, unreadable)
    assert work.take() is None
    settle(work, *work.calls(0.0))
    first, second = taken(work)
    assert first.top.label == "0"
    assert second is unreadable


def test_overload_is_repeated_when_due_and_not_before():
    work = many(photos=1)
    (call,) = work.calls(0.0)
    fail(work, call, overloaded(1.0), 0.5)
    assert list(work.calls(1.4)) == []
    assert 0.1 <= work.wait_s(1.4) <= 0.4
    (again,) = work.calls(1.8)
    assert again[2] == pytest.approx(8.2)
    settle(work, again)
    assert labels(taken(work)) == ["0"]


def test_overload_lowers_the_number_of_calls_at_a_time_and_answers_raise_it():
    work = many(window=40, photos=40)
    calls = list(work.calls(0.0))
    for call in calls[10:]:
        fail(work, call, overloaded(0.1), 0.0)
    assert list(work.calls(1.0)) == []
    for number in range(10):
        settle(work, calls[number])
    again = list(work.calls(1.0))
    assert len(again) == 11
    assert [call[0].number for call in again] == sorted(call[0].number for call in calls[10:21])
    assert work.wait_s(1.0) is None  # it is answers that are waited for


@pytest.mark.parametrize(
    "error",
    [
        overloaded(),
        errors.InvalidImage("cut", code="undecodable", retry_after_s=1.0),
        errors.ServerError("?", code="internal"),
        errors.Unauthenticated("no key", code="unauthenticated"),
    ],
)
def test_other_errors_are_final(error):
    work = many(photos=1)
    (call,) = work.calls(0.0)
    fail(work, call, error, 0.5)
    assert work.take() is error


def test_a_retry_beyond_the_photos_deadline_is_not_begun():
    work = many(photos=1, timeout_s=1.0)
    (call,) = work.calls(0.0)
    fail(work, call, overloaded(0.9), 0.5)
    assert isinstance(work.take(), errors.Overloaded)


def test_time_in_which_nobody_listened_is_not_the_photos():
    work = many(photos=1, timeout_s=1.0)
    (call,) = work.calls(0.0)
    fail(work, call, overloaded(0.1), at=0.5, now=100.5)
    (again,) = work.calls(100.7)
    assert again[2] == pytest.approx(0.3)


def test_without_retries_the_first_error_is_final():
    work = many(photos=2, retry=False)
    first, second = work.calls(0.0)
    fail(work, first, overloaded(0.01), 0.1)
    fail(work, second, UNAVAILABLE, 0.2)
    assert [outcome.code for outcome in taken(work)] == ["overloaded", "unavailable"]


def test_patience_ends_for_all_and_later_photos_fail_at_once():
    work = many(window=4, photos=4, timeout_s=10.0)
    for call in list(work.calls(0.0)):
        fail(work, call, UNAVAILABLE, 0.1)
    for call in list(work.calls(9.9)):
        fail(work, call, UNAVAILABLE, 10.1)
    assert [outcome.code for outcome in taken(work)] == ["unavailable"] * 4
    add(work, photo())
    (call,) = work.calls(10.5)
    fail(work, call, UNAVAILABLE, 10.5)
    assert work.take() is UNAVAILABLE


def test_one_answer_renews_the_patience():
    work = many(photos=2, timeout_s=10.0)
    first, second = work.calls(0.0)
    fail(work, first, UNAVAILABLE, 0.1)
    settle(work, second)
    (again,) = work.calls(9.0)
    fail(work, again, UNAVAILABLE, 9.5)
    assert work.take() is None  # to be tried again within what is left of its own time


def test_the_sources_error_comes_after_the_outcomes_before_it():
    work = many(photos=1)
    work.end(RuntimeError("the disk is gone"))
    settle(work, *work.calls(0.0))
    assert work.take().top.label == "0"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        work.take()


@pytest.mark.parametrize("arguments", [{"window": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        many(**arguments)


class Play:
    """A `Many` to which anything may happen at any time."""

    def __init__(self, window):
        self.work = many(window=window, timeout_s=5.0)
        self.sent = []
        self.outcomes = []
        self.added = 0
        self.now = 0.0

    def add(self):
        if self.work.room.free:
            add(self.work, photo(b"%d" % self.added))
            self.added += 1

    def send(self):
        self.sent += self.work.calls(self.now)

    def settle(self):
        if self.sent:
            settle(self.work, self.sent.pop(len(self.sent) // 2))

    def refuse(self):
        if self.sent:
            fail(self.work, self.sent.pop(), overloaded(0.5), self.now)

    def break_off(self):
        while self.sent:
            fail(self.work, self.sent.pop(), UNAVAILABLE, self.now)

    def finish(self):
        self.work.end()
        while not self.work.done:
            self.now += 1.0
            self.send()
            while self.sent:
                self.settle()
            self.outcomes += taken(self.work)


EVENTS = [Play.add, Play.add, Play.send, Play.send, Play.settle, Play.refuse, Play.break_off]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 1)), max_size=200), st.integers(1, 6))
def test_every_photo_ends_with_one_outcome_whatever_happens(events, window):
    play = Play(window)
    for event, passed_s in events:
        play.now += passed_s
        event(play)
        play.outcomes += taken(play.work)
        assert play.added - len(play.outcomes) <= window
    play.finish()
    assert len(play.outcomes) == play.added
    for number, outcome in enumerate(play.outcomes):
        assert isinstance(outcome, errors.AlexNetError) or outcome.top.label == str(number)
