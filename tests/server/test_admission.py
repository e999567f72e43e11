import pytest

from alexnet_server.batching.admission import Admission
from alexnet_server.errors import DeadlineExceeded, Overloaded

FOREVER = 1e9


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def admission(clock):
    subject = Admission(20, clock)
    subject.finish("alexnet", 10, 0.1, idle=True)  # 10 ms a view
    return subject


def test_views_are_counted(admission):
    admission.enter("alexnet", 10, FOREVER)
    admission.enter("alexnet", 10, FOREVER)
    with pytest.raises(Overloaded):
        admission.enter("alexnet", 1, FOREVER)
    admission.leave("alexnet", 10)
    admission.enter("alexnet", 1, FOREVER)
    assert admission.waiting_views == 11


def test_an_empty_queue_takes_a_photo_of_more_views_than_it_is_long(clock):
    admission = Admission(5, clock)
    admission.enter("alexnet_10crop", 10, FOREVER)
    with pytest.raises(Overloaded):
        admission.enter("alexnet", 1, FOREVER)


def test_the_wait_is_told(admission):
    admission.enter("alexnet", 20, FOREVER)
    with pytest.raises(Overloaded) as refusal:
        admission.enter("alexnet", 10, FOREVER)
    assert refusal.value.retry_after_s == pytest.approx(0.3)


def test_a_deadline_within_the_queue_is_refused_and_a_later_one_is_not(admission, clock):
    admission.enter("alexnet", 10, FOREVER)
    with pytest.raises(DeadlineExceeded):
        admission.enter("alexnet", 1, clock.now + 0.09)
    admission.enter("alexnet", 1, clock.now + 0.11)


def test_a_deadline_in_the_past_is_refused(clock):
    with pytest.raises(DeadlineExceeded):
        Admission(5, clock).enter("alexnet", 1, clock.now - 1)


def test_the_batch_in_the_engine_counts_until_it_ends(admission, clock):
    admission.start("alexnet", 10)
    assert admission.wait_s() == pytest.approx(0.1)
    clock.now += 0.04
    assert admission.wait_s() == pytest.approx(0.06)
    admission.finish("alexnet", 10, 0.05, idle=True)
    assert admission.wait_s() == 0


def test_a_lone_request_does_not_spoil_the_measure(admission):
    admission.finish("alexnet", 1, 0.08, idle=True)
    assert admission.seconds_per_view("alexnet") == pytest.approx(0.01)


def test_a_much_larger_batch_replaces_it(admission):
    admission.finish("alexnet", 32, 0.16, idle=True)
    assert admission.seconds_per_view("alexnet") == pytest.approx(0.005)
    admission.finish("alexnet", 32, 0.32, idle=True)
    assert admission.seconds_per_view("alexnet") == pytest.approx(0.006)
