"""Both clients against a server that gives every kind of trouble."""

import asyncio
import inspect
import io
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

import alexnet_client
from alexnet_client import AsyncClient, Client, errors
from alexnet_client.pb import classifier_pb2 as pb
from tests.client.conftest import Failure, answer_of


class Blocking:
    """The asyncio client with the blocking one's manners, so that one test serves for both."""

    def __init__(self, *arguments, **options):
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._make(*arguments, **options))

    async def _make(self, *arguments, **options):
        return AsyncClient(*arguments, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __getattr__(self, name):
        def call(*arguments, **options):
            made = getattr(self._client, name)(*arguments, **options)
            return self._loop.run_until_complete(made)

        return call

    def classify_many(self, *arguments, **options):
        outcomes = self._client.classify_many(*arguments, **options)
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(outcomes))
                except StopAsyncIteration:
                    return
        finally:
            if not self._loop.is_closed():
                self._loop.run_until_complete(outcomes.aclose())


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def connect(request, fake):
    """Makes a client of the fake server."""
    made = []

    def connect(**options):
        client = request.param(fake.address, **options)
        made.append(client)
        return client.__enter__()

    yield connect
    for client in made:
        client.__exit__(None, None, None)


def test_classify(connect, fake):
    answer = connect().classify(b"a photo", top_k=3, views="ten")
    assert answer.top.label == "a photo"
    assert answer.model == "alexnet"
    (asked,) = fake.requests
    assert (asked.top_k, asked.views, asked.image.encoded) == (3, pb.VIEWS_TEN, b"a photo")
    assert fake.remaining_s[0] == pytest.approx(30, abs=1)


def test_results_are_frozen_values(connect):
    answer = connect().classify(b"a photo")
    assert answer == alexnet_client.Classification(
        "alexnet", "1", (alexnet_client.Prediction(1, 7, "n02124075", "a photo", 0.75),)
    )
    assert hash(answer)
    with pytest.raises(AttributeError):
        answer.model = "other"


def test_a_model_by_name(connect, fake):
    connect().classify(b"a photo", model="alexnet_10crop")
    assert fake.requests[0].model == "alexnet_10crop"


def test_photos_of_every_kind(connect, fake, tmp_path):
    path = tmp_path / "photo"
    path.write_bytes(b"a photo")
    client = connect()
    for photo in (b"a photo", path, str(path), io.BytesIO(b"a photo")):
        assert client.classify(photo).top.label == "a photo"
    assert client.classify(np.zeros((256, 256, 3), np.uint8)).top.label == "prepared"
    client.classify(Image.new("RGB", (10, 10)))
    assert fake.requests[-1].image.encoded.startswith(b"\x89PNG")


def test_features_labels_health(connect, fake):
    client = connect()
    assert client.features(b"a photo", "dense").values == (0.0, 1.5, 2.0)
    assert fake.requests[0].views == pb.VIEWS_DENSE
    client.features(b"a photo", model="alexnet_10crop")
    assert fake.requests[1].model == "alexnet_10crop"
    (model,) = client.models()
    assert (model.name, model.classes, dict(model.about)) == ("alexnet", 200, {"precision": "int8"})
    assert client.labels() == (alexnet_client.Label(0, "n02124075", "Egyptian cat"),)
    assert client.health().ready
    fake.health = 2
    assert client.health() == alexnet_client.Health("NOT_SERVING")


def test_the_key_travels_as_a_bearer_token(connect, fake):
    client = connect(api_key="correct-horse")
    client.classify(b"a photo")
    list(client.classify_many([b"a photo"]))
    assert [each["authorization"] for each in fake.metadata] == ["Bearer correct-horse"] * 2


@pytest.mark.parametrize("method", ["classify", "features"])
def test_arguments_of_no_sense_are_told_before_anything_is_sent(connect, fake, method):
    client = connect()
    for kind in (errors.Unreadable, errors.InvalidImage, FileNotFoundError, OSError):
        with pytest.raises(kind, match=r"/no/such/photo\.jpg"):
            getattr(client, method)("/no/such/photo.jpg")
    with pytest.raises(TypeError):
        getattr(client, method)(7)
    with pytest.raises(ValueError, match="timeout_s"):
        getattr(client, method)(b"a photo", timeout_s=0)
    assert fake.requests == []


def test_an_error_of_the_server_is_raised_once(connect, fake):
    fake.fail = lambda attempt: Failure(
        grpc.StatusCode.INVALID_ARGUMENT, "truncated", x_error_code="undecodable", x_request_id="r-7"
    )
    with pytest.raises(errors.InvalidImage, match="truncated") as caught:
        connect().classify(b"a photo")
    assert (caught.value.code, caught.value.request_id) == ("undecodable", "r-7")
    assert len(fake.requests) == 1


def overloaded(pushback_ms):
    trailers = {"x_error_code": "overloaded"}
    if pushback_ms is not None:
        trailers["grpc_retry_pushback_ms"] = str(pushback_ms)
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", **trailers)


def test_overload_is_waited_out(connect, fake):
    fake.fail = lambda attempt: overloaded(150) if attempt < 3 else None
    started = time.monotonic()
    assert connect().classify(b"a photo").top.label == "a photo"
    assert time.monotonic() - started >= 0.3
    assert len(fake.requests) == 3


def test_overload_without_a_wait_is_not_repeated(connect, fake):
    fake.fail = lambda attempt: overloaded(None)
    with pytest.raises(errors.Overloaded):
        connect().classify(b"a photo")
    assert len(fake.requests) == 1


def test_overload_longer_than_the_deadline_is_told_at_once(connect, fake):
    fake.fail = lambda attempt: overloaded(60_000)
    started = time.monotonic()
    with pytest.raises(errors.Overloaded) as caught:
        connect().classify(b"a photo", timeout_s=5)
    assert caught.value.retry_after_s == 60
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_unavailable_is_tried_again_however_large_the_photo(connect, fake, size):
    fake.fail = lambda attempt: Failure(grpc.StatusCode.UNAVAILABLE) if attempt < 3 else None
    photo = bytes(size)
    assert connect().classify(photo)
    assert [len(each.image.encoded) for each in fake.requests] == [size] * 3


def test_one_attempt_means_one(connect, fake):
    fake.fail = lambda attempt: overloaded(1) if attempt == 1 else Failure(grpc.StatusCode.UNAVAILABLE)
    client = connect(max_attempts=1)
    with pytest.raises(errors.Overloaded):
        client.classify(b"a photo")
    with pytest.raises(errors.Unavailable):
        client.classify(b"a photo")
    assert len(fake.requests) == 2


def test_the_deadline(connect, fake):
    fake.gate.clear()
    with pytest.raises(errors.DeadlineExceeded):
        connect().classify(b"a photo", timeout_s=0.3)
    fake.gate.set()


def test_nobody_there(connect, fake):
    client = connect(max_attempts=2)
    fake.stop()
    with pytest.raises(errors.Unavailable):
        client.health(timeout_s=20)
    with pytest.raises(errors.Unavailable):
        client.classify(b"a photo", timeout_s=20)


def test_a_closed_client_says_so(connect, fake):
    client = connect()
    client.classify(b"a photo")
    client.close()
    for call in (lambda: client.classify(b"a photo"), client.health):
        with pytest.raises(errors.Unavailable, match="has been closed"):
            call()
    found = list(client.classify_many([b"a", b"b"]))
    assert [(type(each), each.code) for each in found] == [(errors.Unavailable, "closed")] * 2


async def test_closing_ends_calls_that_run(fake):
    fake.gate.clear()
    client = AsyncClient(fake.address)
    running = asyncio.create_task(client.classify(b"a photo"))
    while not fake.requests:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(errors.Unavailable, match="has been closed"):
        await running


def test_an_asynchronous_client_may_be_made_outside_of_a_loop(fake):
    client = AsyncClient(fake.address)

    async def run():
        async with client:
            return await client.classify(b"a photo")

    assert asyncio.run(run()).top.label == "a photo"


async def test_cancelling_an_asynchronous_call_cancels_it(fake):
    fake.gate.clear()
    async with AsyncClient(fake.address) as client:
        task = asyncio.create_task(client.classify(b"a photo"))
        while not fake.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    fake.gate.set()


# -- classify_many


def numbered(count):
    return [b"%d" % number for number in range(count)]


def labels(outcomes):
    return [outcome.top.label for outcome in outcomes]


def test_many_keeps_order_within_its_window(connect, fake):
    lock = threading.Lock()
    at_work = most = 0

    def shuffled(request, context):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.003 if int(request.image.encoded) % 3 == 0 else 0)
        with lock:
            at_work -= 1
        return answer_of(request.image)

    fake.reply = shuffled
    found = labels(connect().classify_many(numbered(1000), window=16))
    assert found == [str(number) for number in range(1000)]
    assert 4 < most <= 16


def test_many_reads_its_source_no_further_than_the_window(connect):
    taken = 0

    def source():
        nonlocal taken
        for photo in numbered(1000):
            taken += 1
            yield photo

    outcomes = connect().classify_many(source(), window=10)
    for _ in range(5):
        next(outcomes)
    time.sleep(0.3)
    assert taken <= 5 + 10 + 1
    outcomes.close()


def picky(request, context):
    if request.image.encoded == b"bad":
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "truncated", x_error_code="undecodable").end(context)
    return answer_of(request.image)


def test_many_gives_each_photo_its_own_error(connect, fake, tmp_path):
    fake.reply = picky
    photos = [b"one", b"bad", tmp_path / "missing.jpg", np.zeros(3), b"two"]
    first, bad, missing, array, second = connect().classify_many(photos)
    assert labels([first, second]) == ["one", "two"]
    assert isinstance(bad, errors.InvalidImage)
    assert isinstance(missing, errors.Unreadable)
    assert missing.code == "unreadable"
    assert "missing.jpg" in str(missing)
    assert isinstance(missing.__cause__, FileNotFoundError)
    assert "uint8" in str(array)


def test_many_passes_on_what_its_source_raises_in_its_turn(connect):
    def source():
        yield b"one"
        yield b"two"
        raise RuntimeError("the disk is gone")

    outcomes = connect().classify_many(source())
    assert labels([next(outcomes), next(outcomes)]) == ["one", "two"]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(outcomes)


def test_many_of_nothing(connect, fake):
    assert list(connect().classify_many([])) == []
    assert fake.metadata == []


def test_many_repeats_what_was_overloaded(connect, fake):
    refused = set()

    def busy(request, context):
        if request.image.encoded not in refused and len(refused) < 5:
            refused.add(request.image.encoded)
            overloaded(50).end(context)
        return answer_of(request.image)

    fake.reply = busy
    assert labels(connect().classify_many(numbered(20))) == [str(number) for number in range(20)]
    assert len(refused) == 5


def test_many_learns_how_much_a_server_has_room_for(connect, fake):
    lock = threading.Lock()
    at_work = refused = 0

    def small(request, context):
        nonlocal at_work, refused
        with lock:
            full = at_work >= 8
            refused += full
            at_work += not full
        if full:
            overloaded(20).end(context)
        time.sleep(0.01)
        with lock:
            at_work -= 1
        return answer_of(request.image)

    fake.reply = small
    assert labels(connect().classify_many(numbered(300))) == [str(number) for number in range(300)]
    assert refused < 150


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_many_survives_broken_calls(connect, fake, status):
    dropped = set()

    def brittle(request, context):
        photo = request.image.encoded
        if int(photo) % 9 == 8 and photo not in dropped:
            dropped.add(photo)
            context.abort(status, "moving")
        return answer_of(request.image)

    fake.reply = brittle
    outcomes = connect().classify_many(numbered(100), window=64)
    assert labels(outcomes) == [str(number) for number in range(100)]
    assert len(dropped) == 11


def test_many_gives_up_when_no_server_comes_back(connect, fake):
    fake.fail = lambda _attempt: Failure(grpc.StatusCode.UNAVAILABLE, "gone")
    started = time.monotonic()
    found = list(connect().classify_many(numbered(30), timeout_s=1.0, window=8))
    assert [type(outcome) for outcome in found] == [errors.Unavailable] * 30
    assert 1 < time.monotonic() - started < 3  # not once for each window of photos


def test_many_does_not_wait_for_a_key_to_become_right(connect, fake):
    fake.fail = lambda _attempt: Failure(
        grpc.StatusCode.UNAUTHENTICATED, "no key", x_error_code="unauthenticated"
    )
    found = list(connect().classify_many(numbered(3)))
    assert [type(outcome) for outcome in found] == [errors.Unauthenticated] * 3
    assert len(fake.requests) == 3


def test_many_ends_a_silent_photo_at_its_deadline(connect, fake):
    ended = threading.Event()

    def forgetful(request, context):
        if request.image.encoded == b"1":
            ended.wait(10)
        return answer_of(request.image)

    fake.reply = forgetful
    first, second, third = connect().classify_many(numbered(3), timeout_s=0.5)
    ended.set()
    assert labels([first, third]) == ["0", "2"]
    assert isinstance(second, errors.DeadlineExceeded)


def test_many_hands_out_what_is_ready_while_its_source_is_waited_for(fake):
    """A source may wait for the outcome of the photo before."""
    seen = threading.Event()

    def source():
        yield b"one"
        assert seen.wait(10)
        yield b"two"

    with Client(fake.address) as client:
        outcomes = client.classify_many(source())
        assert next(outcomes).top.label == "one"
        seen.set()
        assert labels(outcomes) == ["two"]


def test_a_slow_taker_costs_no_photo_its_retry(fake):
    fake.fail = lambda attempt: overloaded(50) if attempt == 2 else None
    with Client(fake.address) as client:
        outcomes = client.classify_many(numbered(3), timeout_s=1.0)
        assert next(outcomes).top.label == "0"
        time.sleep(1.2)
        assert labels(outcomes) == ["1", "2"]


def test_leaving_many_half_way_cancels_what_is_at_work(connect, fake):
    ended = [threading.Event() for _ in range(4)]
    all_there = threading.Barrier(4)
    over = threading.Event()

    def watched(request, context):
        number = int(request.image.encoded)
        context.add_callback(ended[number].set)
        all_there.wait(10)
        if number:
            over.wait(10)
        return answer_of(request.image)

    fake.reply = watched
    outcomes = connect().classify_many(numbered(4))
    assert next(outcomes).top.label == "0"
    assert not any(each.is_set() for each in ended[1:])
    outcomes.close()
    assert all(each.wait(5) for each in ended[1:])
    over.set()


def test_many_tells_its_progress(connect):
    told = []
    list(connect().classify_many([b"one", "/no/such/file"], progress=told.append))
    assert [(each.done, each.failed, each.total) for each in told] == [(1, 0, 2), (2, 1, 2)]
    assert "2/2 photos" in str(told[-1])
    assert "1 failed" in str(told[-1])


def test_many_draws_its_progress_on_request(connect, capsys):
    list(connect().classify_many(iter(numbered(5)), progress=True))
    assert capsys.readouterr().err.startswith("5 photos, ")


@pytest.mark.parametrize(
    "bad", [{"window": 0}, {"timeout_s": 0}, {"views": "all"}, {"model": "m", "views": "ten"}]
)
def test_many_refuses_senseless_arguments_at_once(fake, bad):
    with Client(fake.address) as client, pytest.raises(ValueError, match=r"must|not both"):
        client.classify_many([], **bad)


@pytest.mark.parametrize(
    "one",
    [
        "cat.jpg",
        b"a photo",
        Path("cat.jpg"),
        io.BytesIO(b""),
        Image.new("L", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=lambda one: type(one).__name__,
)
def test_many_refuses_one_photo(fake, one):
    for client in (Client(fake.address), AsyncClient(fake.address)):
        with pytest.raises(TypeError, match="use classify"):
            client.classify_many(one)


def test_an_array_of_photos_is_many(connect):
    assert labels(connect().classify_many(np.zeros((2, 256, 256, 3), np.uint8))) == ["prepared"] * 2


async def test_many_from_an_asynchronous_source(fake):
    async def source():
        for photo in numbered(50):
            await asyncio.sleep(0)
            yield photo

    async with AsyncClient(fake.address) as client:
        assert labels([outcome async for outcome in client.classify_many(source())]) == [
            str(number) for number in range(50)
        ]


def test_the_two_clients_have_the_same_methods_and_arguments():
    names = [name for name in vars(Client) if not name.startswith("_")]
    assert names == [name for name in vars(AsyncClient) if not name.startswith("_")]
    for name in (*names, "__init__"):
        mine, theirs = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert list(mine.parameters) == list(theirs.parameters), name
        for parameter in mine.parameters.values():
            assert parameter.default == theirs.parameters[parameter.name].default, (name, parameter)


def test_the_public_names_are_documented():
    aliases = {"Outcome", "Photo", "Views"}
    for name in set(alexnet_client.__all__) - aliases:
        assert getattr(alexnet_client, name).__doc__, name
