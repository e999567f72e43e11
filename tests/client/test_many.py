"""The bookkeeping of `classify_many`, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_client import errors
from alexnet_client._many import WINDOW_BYTES, Many
from alexnet_client.pb import classifier_pb2 as pb


def photo(label=b"photo"):
    return pb.ClassifyRequest(image=pb.Image(encoded=label))


def result(message):
    prediction = pb.Prediction(rank=1, label=message.request.image.encoded.decode())
    return pb.ClassifyStreamResponse(id=message.id, response=pb.ClassifyResponse(predictions=[prediction]))


def refusal(message, code, retry_after_ms=None):
    error = pb.Error(code=code, message="as told", retry_after_ms=retry_after_ms)
    return pb.ClassifyStreamResponse(id=message.id, error=error)


def many(window=8, timeout_s=10.0, retry=True, photos=0):
    made = Many(window=window, timeout_s=timeout_s, retry=retry)
    for number in range(photos):
        made.add(photo(b"%d" % number))
    return made


def labels(outcomes):
    return [outcome.top.label for outcome in outcomes]


UNAVAILABLE = errors.Unavailable("gone", code="unavailable")


def test_answers_out_of_order_come_out_in_order():
    work = many(photos=3)
    messages = [work.next_request(0, 0.0) for _ in range(3)]
    assert work.next_request(0, 0.0) is None
    work.answer(result(messages[2]), 0.1)
    work.answer(result(messages[1]), 0.1)
    assert work.take() == []
    work.answer(result(messages[0]), 0.1)
    assert labels(work.take()) == ["0", "1", "2"]
    assert not work.done
    work.end()
    assert work.done
    assert work.finished


def test_the_window_counts_what_is_not_taken():
    work = many(window=2, photos=2)
    assert not work.has_room
    for message in (work.next_request(0, 0.0), work.next_request(0, 0.0)):
        work.answer(result(message), 0.1)
    assert not work.has_room
    work.take()
    assert work.has_room


def test_the_window_is_bounded_in_bytes_too():
    work = many(window=100)
    work.add(photo(bytes(WINDOW_BYTES)))
    assert not work.has_room
    work.answer(refusal(work.next_request(0, 0.0), "too_large"), 0.1)
    assert work.has_room
    assert isinstance(work.take()[0], errors.TooLarge)


def test_an_unreadable_photo_takes_its_turn():
    work = many(photos=1)
    unreadable = errors.InvalidImage("no such file", code="unreadable")
    work.add(unreadable)
    assert work.take() == []
    work.answer(result(work.next_request(0, 0.0)), 0.1)
    first, second = work.take()
    assert first.top.label == "0"
    assert second is unreadable


def test_overload_is_repeated_when_due_and_not_before():
    work = many(photos=1)
    work.answer(refusal(work.next_request(0, 0.0), "overloaded", 1000), 0.5)
    assert work.next_request(0, 1.4) is None
    assert 0.1 <= work.due_s(1.4) <= 0.4
    again = work.next_request(0, 1.8)
    assert again.timeout_ms == 8200
    work.answer(result(again), 2.0)
    assert labels(work.take()) == ["0"]


@pytest.mark.parametrize(
    ("code", "retry_after_ms"), [("overloaded", None), ("undecodable", 1000), ("internal", None)]
)
def test_other_errors_are_final(code, retry_after_ms):
    work = many(photos=1)
    work.answer(refusal(work.next_request(0, 0.0), code, retry_after_ms), 0.5)
    assert work.take()[0].code == code


def test_a_retry_beyond_the_photos_deadline_is_not_begun():
    work = many(photos=1, timeout_s=1.0)
    work.answer(refusal(work.next_request(0, 0.0), "overloaded", 900), 0.5)
    (error,) = work.take()
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after_s == 0.9


def test_without_retries_the_first_error_is_final():
    work = many(photos=2, retry=False)
    work.answer(refusal(work.next_request(0, 0.0), "overloaded", 10), 0.1)
    work.next_request(0, 0.1)
    work.broken(0, UNAVAILABLE, 0.2)
    assert [outcome.code for outcome in work.take()] == ["overloaded", "unavailable"]


def test_a_broken_streams_photos_go_to_the_next_in_order():
    work = many(photos=4)
    on_first = [work.next_request(0, 0.0) for _ in range(2)]
    on_second = work.next_request(1, 0.0)
    assert work.broken(0, UNAVAILABLE, 0.1) > 0
    again = [work.next_request(1, 0.2) for _ in range(3)]
    assert [message.id for message in again] == [on_first[0].id, on_first[1].id, "3"]
    for message in (on_second, *again):
        work.answer(result(message), 0.3)
    assert labels(work.take()) == ["0", "1", "2", "3"]


def test_backoff_grows_and_an_answer_resets_it():
    work = many(photos=2, timeout_s=100.0)
    waits = []
    for attempt in range(8):
        work.next_request(0, attempt)
        waits.append(work.broken(0, UNAVAILABLE, attempt))
    assert waits[0] < 0.2
    assert 5 <= waits[-1] <= 6.25
    work.answer(result(work.next_request(0, 9.0)), 9.0)
    assert work.broken(0, UNAVAILABLE, 9.0) < 0.2


def test_patience_ends_for_all_and_later_photos_fail_at_once():
    work = many(window=4, photos=4, timeout_s=10.0)
    work.next_request(0, 0.0)
    work.broken(0, UNAVAILABLE, 0.0)
    work.next_request(0, 10.0)
    assert work.broken(0, UNAVAILABLE, 10.0) < 0.2
    assert [outcome.code for outcome in work.take()] == ["unavailable"] * 4
    work.add(photo())
    work.next_request(0, 10.5)
    work.broken(0, UNAVAILABLE, 10.5)
    assert [outcome.code for outcome in work.take()] == ["unavailable"]


def test_a_hopeless_stream_is_not_tried_again():
    work = many(photos=2)
    work.next_request(0, 0.0)
    work.broken(0, errors.Unauthenticated("no key", code="unauthenticated"), 0.1)
    assert [outcome.code for outcome in work.take()] == ["unauthenticated"] * 2


def test_silence_ends_at_the_deadline_and_a_late_answer_is_dropped():
    work = many(photos=1, timeout_s=3.0)
    message = work.next_request(0, 1.0)
    assert work.expiry_s(2.0) == 4.0
    work.expire(5.9)
    assert work.take() == []
    work.expire(6.0)
    assert isinstance(work.take()[0], errors.DeadlineExceeded)
    work.answer(result(message), 6.1)
    assert work.take() == []


def test_the_sources_error_comes_after_the_outcomes_before_it():
    work = many(photos=1)
    work.end(RuntimeError("the disk is gone"))
    work.answer(result(work.next_request(0, 0.0)), 0.1)
    assert labels(work.take()) == ["0"]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        work.take()


@pytest.mark.parametrize("arguments", [{"window": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        many(**arguments)


class Play:
    """A `Many` with two streams, to which anything may happen at any time."""

    def __init__(self, window):
        self.work = many(window=window, timeout_s=5.0)
        self.sent = {0: [], 1: []}
        self.outcomes = []
        self.added = 0
        self.now = 0.0

    def add(self, _stream):
        if self.work.has_room:
            self.work.add(photo(b"%d" % self.added))
            self.added += 1

    def send(self, stream):
        if (message := self.work.next_request(stream, self.now)) is not None:
            self.sent[stream].append(message)

    def answer(self, stream):
        if self.sent[stream]:
            self.work.answer(result(self.sent[stream].pop(len(self.sent[stream]) // 2)), self.now)

    def refuse(self, stream):
        if self.sent[stream]:
            self.work.answer(refusal(self.sent[stream].pop(), "overloaded", 500), self.now)

    def break_off(self, stream):
        self.work.broken(stream, UNAVAILABLE, self.now)
        self.sent[stream].clear()

    def expire(self, _stream):
        self.work.expire(self.now)

    def finish(self):
        self.work.end()
        while not self.work.done:
            self.now += 1.0
            for stream in self.sent:
                self.send(stream)
                while self.sent[stream]:
                    self.answer(stream)
            self.outcomes += self.work.take()


EVENTS = [Play.add, Play.add, Play.send, Play.send, Play.answer, Play.refuse, Play.break_off, Play.expire]


@given(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1), st.floats(0, 1)), max_size=200),
    st.integers(1, 6),
)
def test_every_photo_ends_with_one_outcome_whatever_happens(events, window):
    play = Play(window)
    for event, stream, passed_s in events:
        play.now += passed_s
        event(play, stream)
        play.outcomes += play.work.take()
        assert play.added - len(play.outcomes) <= window
    play.finish()
    assert len(play.outcomes) == play.added
    for number, outcome in enumerate(play.outcomes):
        assert isinstance(outcome, errors.AlexNetError) or outcome.top.label == str(number)
