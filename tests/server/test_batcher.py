import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_server.batching.admission import Admission
from alexnet_server.batching.batcher import Batcher
from alexnet_server.engines import EngineFailed, Images
from alexnet_server.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from tests.server.fakes import FakeEngine, eventually, fake_model, flat_image


@contextlib.asynccontextmanager
async def batcher(engine: FakeEngine, *, queue_size: int = 512, **changes: Any) -> AsyncIterator[Batcher]:
    subject = Batcher(engine, Admission(queue_size), **({"engine_timeout_s": 5.0} | changes))
    try:
        yield subject
    finally:
        engine.gate.set()
        await subject.close()


async def infer(subject: Batcher, value: int, model: str = "alexnet", *, features: bool = False):
    with subject.reserve(subject.models[model], time.monotonic() + 60) as place:
        return await place.infer(flat_image(value), features=features)


async def test_a_lone_row_starts_at_once():
    async with batcher(FakeEngine()) as subject:
        row = await infer(subject, 3)
        assert row.probabilities.argmax() == 3
        assert row.features is None
        assert row.waited_s < 0.5


async def test_what_queues_while_the_engine_is_busy_is_one_batch():
    engine = FakeEngine()
    engine.gate.clear()
    async with batcher(engine) as subject:
        first = asyncio.create_task(infer(subject, 0))
        await eventually(engine.entered.is_set)
        rest = [asyncio.create_task(infer(subject, value)) for value in range(1, 10)]
        await eventually(lambda: subject.admission.waiting_views == 9)
        engine.gate.set()
        rows = await asyncio.gather(first, *rest)
    assert [row.probabilities.argmax() for row in rows] == list(range(10))
    assert engine.batches == [("alexnet", [0]), ("alexnet", list(range(1, 10)))]
    assert engine.closed


async def test_one_full_batch_is_prefetched_and_no_more():
    engine = FakeEngine(fake_model(max_batch_size=4))
    engine.gate.clear()
    async with batcher(engine) as subject:
        tasks = [asyncio.create_task(infer(subject, 0))]
        await eventually(engine.entered.is_set)
        tasks += [asyncio.create_task(infer(subject, value)) for value in range(10)]
        # One runs, four are prefetched: six of the ten still wait.
        await eventually(lambda: subject.admission.waiting_views == 6)
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert [len(values) for _, values in engine.batches] == [1, 4, 4, 2]


async def test_full_batches_run_beside_each_other_where_the_engine_computes_several():
    engine = FakeEngine(fake_model(max_batch_size=4), concurrency=2)
    engine.gate.clear()
    async with batcher(engine) as subject:
        tasks = [asyncio.create_task(infer(subject, 0))]
        await eventually(lambda: len(engine.batches) == 1)
        tasks += [asyncio.create_task(infer(subject, value)) for value in range(3)]
        await asyncio.sleep(0.05)
        assert len(engine.batches) == 1  # three still grow
        tasks += [asyncio.create_task(infer(subject, value)) for value in range(3, 11)]
        # Four run beside the first, four are prefetched, three wait.
        await eventually(lambda: len(engine.batches) == 2)
        await eventually(lambda: subject.admission.waiting_views == 3)
        await asyncio.sleep(0.05)
        assert len(engine.batches) == 2
        engine.gate.set()
        rows = await asyncio.gather(*tasks)
    assert [row.probabilities.argmax() for row in rows] == [0, *(value % 10 for value in range(11))]
    assert sorted(len(values) for _, values in engine.batches) == [1, 3, 4, 4]


async def test_the_engine_is_told_when_a_batch_may_have_all_cores():
    engine = FakeEngine(fake_model(max_batch_size=2), concurrency=2)
    async with batcher(engine) as subject:
        await infer(subject, 0)
        assert engine.alone == [True]
        engine.gate.clear()
        tasks = [asyncio.create_task(infer(subject, 0))]
        await eventually(lambda: len(engine.alone) == 2)
        tasks += [asyncio.create_task(infer(subject, value)) for value in range(2)]
        await eventually(lambda: len(engine.alone) == 3)
        engine.gate.set()
        await asyncio.gather(*tasks)
        with subject.reserve(subject.models["alexnet"], time.monotonic() + 60):  # being decoded
            await infer(subject, 0)
    assert engine.alone == [True, True, False, False]


async def test_any_batch_that_hangs_is_a_problem():
    engine = FakeEngine(fake_model(max_batch_size=1), concurrency=2)
    hung = threading.Event()

    def hang_at_seven(images: Images) -> None:
        if (images == 7).all():
            hung.wait()

    engine.fail = hang_at_seven
    async with batcher(engine, engine_timeout_s=0.1) as subject:
        stuck = asyncio.create_task(infer(subject, 7))
        await eventually(engine.entered.is_set)
        for value in range(3):
            await infer(subject, value)  # the other stream goes on
        await eventually(lambda: subject.problem() is not None)
        assert "more than 0.1 s" in str(subject.problem())
        hung.set()
        await stuck
        assert subject.problem() is None


async def test_models_share_the_engine_in_order_of_arrival():
    engine = FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))
    engine.gate.clear()
    async with batcher(engine) as subject:
        tasks = [asyncio.create_task(infer(subject, 0))]
        await eventually(engine.entered.is_set)
        for value, model in ((1, "alexnet_10crop"), (2, "alexnet"), (3, "alexnet_10crop"), (4, "alexnet")):
            tasks.append(asyncio.create_task(infer(subject, value, model)))
        await eventually(lambda: subject.admission.waiting_views == 22)
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert engine.batches[1:] == [("alexnet_10crop", [1, 3]), ("alexnet", [2, 4])]


async def test_features_are_given_to_those_who_asked():
    async with batcher(FakeEngine()) as subject:
        plain, asked = await asyncio.gather(infer(subject, 1), infer(subject, 2, features=True))
    assert plain.features is None
    assert asked.features.shape == (4096,)
    assert (asked.features == 2).all()


async def test_a_full_queue_refuses_and_says_when_to_come_back():
    engine = FakeEngine(seconds=0.02)
    async with batcher(engine, queue_size=2) as subject:
        await infer(subject, 0)  # measures seconds per view
        engine.gate.clear()
        engine.entered.clear()
        running = asyncio.create_task(infer(subject, 0))
        await eventually(engine.entered.is_set)
        waiting = [asyncio.create_task(infer(subject, value)) for value in (1, 2)]
        await eventually(lambda: subject.admission.waiting_views == 2)
        with pytest.raises(Overloaded) as refusal:
            subject.reserve(subject.models["alexnet"], time.monotonic() + 60)
        assert refusal.value.retry_after_s >= 0.03
        engine.gate.set()
        await asyncio.gather(running, *waiting)
        assert subject.admission.waiting_views == 0


async def test_a_deadline_shorter_than_the_queue_is_refused_at_once():
    engine = FakeEngine(seconds=0.05)
    async with batcher(engine) as subject:
        await infer(subject, 0)
        engine.gate.clear()
        tasks = [asyncio.create_task(infer(subject, value)) for value in range(9)]
        await eventually(lambda: subject.admission.waiting_views == 8)
        with pytest.raises(DeadlineExceeded):
            subject.reserve(subject.models["alexnet"], time.monotonic() + 0.1)
        engine.gate.set()
        await asyncio.gather(*tasks)


async def test_a_cancelled_row_is_dropped_before_the_engine_and_frees_its_place():
    engine = FakeEngine()
    engine.gate.clear()
    async with batcher(engine) as subject:
        running = asyncio.create_task(infer(subject, 0))
        await eventually(engine.entered.is_set)
        left, stayed = (asyncio.create_task(infer(subject, value)) for value in (1, 2))
        await eventually(lambda: subject.admission.waiting_views == 2)
        left.cancel()
        await eventually(lambda: subject.admission.waiting_views == 1)
        engine.gate.set()
        await asyncio.gather(running, stayed)
    assert engine.batches == [("alexnet", [0]), ("alexnet", [2])]


async def test_a_row_cancelled_in_a_prefetched_batch_is_dropped_too():
    engine = FakeEngine(fake_model(max_batch_size=2))
    engine.gate.clear()
    async with batcher(engine) as subject:
        running = asyncio.create_task(infer(subject, 0))
        await eventually(engine.entered.is_set)
        left, stayed = (asyncio.create_task(infer(subject, value)) for value in (1, 2))
        await eventually(lambda: len(subject._in_engine) == 2)
        left.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(running, stayed)
        assert subject.admission.waiting_views == 0
    assert engine.batches == [("alexnet", [0]), ("alexnet", [2])]


async def test_a_failing_row_fails_alone():
    engine = FakeEngine()

    def fail(images):
        if (images[:, 128, 128, 0] == 13).any():
            raise RuntimeError("a bad row")

    engine.fail = fail
    engine.gate.clear()
    async with batcher(engine) as subject:
        first = asyncio.create_task(infer(subject, 0))
        await eventually(engine.entered.is_set)
        tasks = [asyncio.create_task(infer(subject, value)) for value in (11, 12, 13, 14)]
        await eventually(lambda: subject.admission.waiting_views == 4)
        engine.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert subject.problem() is None
    assert [type(result) is Internal for result in results] == [False, False, False, True, False]
    assert [result.probabilities.argmax() for result in results[1:3]] == [1, 2]


async def test_an_engine_with_a_wrong_number_of_rows_is_an_internal_error():
    engine = FakeEngine()
    inner = engine.infer
    engine.infer = lambda model, images, features: inner(model, images[:0], features=features)
    async with batcher(engine) as subject:
        with pytest.raises(Internal):
            await infer(subject, 1)


@pytest.mark.parametrize(
    "end", [EngineFailed("device lost"), SystemExit(), MemoryError(), KeyboardInterrupt()]
)
async def test_when_the_engine_thread_ends_everybody_is_answered(end):
    engine = FakeEngine(fake_model(max_batch_size=2))

    def fail(images):
        raise end

    engine.gate.clear()
    engine.fail = fail
    subject = Batcher(engine, Admission(64), engine_timeout_s=5.0)
    tasks = [asyncio.create_task(infer(subject, value)) for value in range(9)]
    await eventually(lambda: engine.entered.is_set() and subject.admission.waiting_views == 6)
    engine.gate.set()
    if isinstance(end, MemoryError):  # an ordinary exception: rows are tried one by one, the engine lives
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {Internal, Unavailable}
        await subject.close()
        return
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert {type(result) for result in results} == {Unavailable}
    await asyncio.wait_for(subject.failed, 5)
    with pytest.raises(Unavailable):
        subject.reserve(subject.models["alexnet"], time.monotonic() + 60)
    assert subject.problem() is not None
    await subject.close()


async def test_an_engine_that_always_fails_is_given_up():
    engine = FakeEngine()

    def fail(images):
        raise RuntimeError("no")

    engine.fail = fail
    subject = Batcher(engine, Admission(64), engine_timeout_s=5.0)
    for _ in range(20):
        with contextlib.suppress(Internal, Unavailable):
            await infer(subject, 1)
    assert subject.failed.done()
    await subject.close()


async def test_an_overrunning_batch_is_a_problem_until_it_ends():
    engine = FakeEngine()
    engine.gate.clear()
    async with batcher(engine, engine_timeout_s=0.05) as subject:
        task = asyncio.create_task(infer(subject, 1))
        await eventually(lambda: subject.problem() is not None)
        engine.gate.set()
        await task
        assert subject.problem() is None


async def test_closing_answers_what_waits_and_finishes_what_runs():
    engine = FakeEngine()
    engine.gate.clear()
    subject = Batcher(engine, Admission(64), engine_timeout_s=5.0)
    running = asyncio.create_task(infer(subject, 1))
    await eventually(engine.entered.is_set)
    waiting = asyncio.create_task(infer(subject, 2))
    await eventually(lambda: subject.admission.waiting_views == 1)
    closing = asyncio.create_task(subject.close())
    with pytest.raises(Unavailable):
        await waiting
    engine.gate.set()
    assert (await running).probabilities.argmax() == 1
    await closing


async def test_an_engine_that_fails_while_it_closes_answers_what_runs():
    engine = FakeEngine()

    def fail(images):
        raise EngineFailed("device lost")

    engine.fail = fail
    engine.gate.clear()
    subject = Batcher(engine, Admission(64), engine_timeout_s=5.0)
    running = asyncio.create_task(infer(subject, 1))
    await eventually(engine.entered.is_set)
    closing = asyncio.create_task(subject.close())
    await asyncio.sleep(0)
    engine.gate.set()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(running, 5)
    await closing


async def test_on_shared_cores_the_engine_waits_for_photos_being_decoded():
    engine = FakeEngine(shares_cores=True)
    async with batcher(engine) as subject:
        subject._decode_s = 5.0  # decoders deliver every few seconds
        model = subject.models["alexnet"]
        deadline = time.monotonic() + 60
        with subject.reserve(model, deadline) as first, subject.reserve(model, deadline) as second:
            one = asyncio.create_task(first.infer(flat_image(1)))
            await asyncio.sleep(0.05)
            assert not engine.batches
            two = asyncio.create_task(second.infer(flat_image(2)))
            await asyncio.gather(one, two)
    assert engine.batches == [("alexnet", [1, 2])]


async def test_a_batch_is_no_larger_than_pays():
    """The rest is decoded, or waits, while the engine computes; a row of many views goes alone."""
    engine = FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10), shares_cores=True)
    engine.enough_views = 3
    async with batcher(engine) as subject:
        subject._decode_s = 30.0
        model = subject.models["alexnet"]
        with subject.reserve(model, time.monotonic() + 60):  # still being decoded: no reason to wait
            await asyncio.wait_for(asyncio.gather(*(infer(subject, value) for value in range(3))), 5)
            assert engine.batches == [("alexnet", [0, 1, 2])]
        engine.gate.clear()
        rows = [asyncio.create_task(infer(subject, value)) for value in range(8)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        await asyncio.gather(*rows)
        assert max(len(values) for _, values in engine.batches) == 3
        engine.batches.clear()
        await asyncio.gather(*(infer(subject, value, "alexnet_10crop") for value in range(3)))
    assert engine.batches == [("alexnet_10crop", [value]) for value in range(3)]


async def test_a_huge_photo_does_not_keep_small_ones_waiting():
    engine = FakeEngine(shares_cores=True)
    async with batcher(engine) as subject:
        subject._decode_s = 0.02
        model = subject.models["alexnet"]
        with subject.reserve(model, time.monotonic() + 60):  # never decoded while the other waits
            row = await asyncio.wait_for(infer(subject, 1), 2)
    assert row.waited_s >= 0.02


async def test_a_decode_that_fails_lets_the_engine_start():
    engine = FakeEngine(shares_cores=True)
    async with batcher(engine) as subject:
        subject._decode_s = 30.0
        model = subject.models["alexnet"]
        with subject.reserve(model, time.monotonic() + 60):
            task = asyncio.create_task(infer(subject, 1))
            await asyncio.sleep(0.02)
            assert not task.done()
        await asyncio.wait_for(task, 2)


FATES = st.sampled_from(["served", "failing", "leaves-early", "leaves-late", "never-decoded", "slow"])


@settings(max_examples=40, deadline=None)
@given(
    fates=st.lists(st.tuples(FATES, st.booleans()), min_size=1, max_size=40),
    largest=st.integers(1, 8),
    queue_size=st.integers(1, 64),
    shares_cores=st.booleans(),
    concurrency=st.integers(1, 3),
)
def test_whatever_happens_each_caller_gets_its_own_answer(
    fates, largest, queue_size, shares_cores, concurrency
):
    asyncio.run(_story(fates, largest, queue_size, shares_cores, concurrency))


async def _story(fates, largest, queue_size, shares_cores, concurrency):
    engine = FakeEngine(
        fake_model(max_batch_size=largest),
        fake_model("alexnet_10crop", "ten", 10, max_batch_size=largest),
        shares_cores=shares_cores,
        concurrency=concurrency,
    )
    engine.fail = _slow_from_150_failing_from_200
    async with batcher(engine, queue_size=queue_size) as subject:
        tasks = []
        for number, (fate, ten) in enumerate(fates):
            model = subject.models["alexnet_10crop" if ten else "alexnet"]
            tasks.append(asyncio.create_task(_caller(subject, model, number, fate)))
            if fate == "leaves-early":
                tasks[-1].cancel()
        await asyncio.sleep(0.002)
        for task, (fate, _) in zip(tasks, fates, strict=True):
            if fate == "leaves-late":
                task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        refusals = (Overloaded, Unavailable) if subject.failed.done() else Overloaded
        assert subject.admission.waiting_views == 0
        assert not any(subject._decoding.values())
        assert not any(subject._ready.values())
    for (fate, _), result in zip(fates, results, strict=True):
        if not isinstance(result, refusals):
            _check_fate(fate, result)
    assert all(len(values) <= largest for _, values in engine.batches)


def _slow_from_150_failing_from_200(images):
    if (images[:, 128, 128, 0] >= 200).any():
        raise RuntimeError("a bad row")
    if (images[:, 128, 128, 0] >= 150).any():
        time.sleep(0.002)


async def _caller(subject, model, number, fate):
    """The class that the engine found, and the one it should find."""
    value = number + {"failing": 200, "slow": 150}.get(fate, 0)
    with subject.reserve(model, time.monotonic() + 60) as place:
        await asyncio.sleep(0.001 * (number % 3))
        if fate == "never-decoded":
            return None
        return (await place.infer(flat_image(value))).probabilities.argmax(), value % 10


def _check_fate(fate, result):
    if fate == "failing":
        assert isinstance(result, Internal)
    elif fate == "never-decoded":
        assert result is None
    elif not (fate.startswith("leaves") and isinstance(result, asyncio.CancelledError)):
        assert result[0] == result[1]
