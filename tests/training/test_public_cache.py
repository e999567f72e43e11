"""`alexnet-server --weights NAME`: once fetched, converted and tried, they are there; or nothing is."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from caffe_files import first_generation
from full_disk import file_size_limit
from website import serving

from alexnet_server.main import main
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.public import cache, download, importing, sources
from alexnet_server.models.public.cache import Wanted, ensure
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import ensure_unpacked
from alexnet_server.models.variants import VARIANTS
from alexnet_server.photos import FOLDER
from alexnet_server.preprocess import PREPROCESS_VERSION

ROOT = Path(__file__).parents[2]
NETWORK = random_weights(scaled(VARIANTS["caffe"], 8, 96), 1000)
DATA = first_generation(dict(NETWORK.tensors))
DIGEST = "sha1:" + hashlib.sha1(DATA).hexdigest()


@pytest.fixture
def site(monkeypatch):
    """A web server with a small network, published as ``bvlc_alexnet``."""
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    with serving(DATA, "bvlc_alexnet.caffemodel") as site:
        source = replace(sources.SOURCES["bvlc_alexnet"], urls=(site.url,), digest=DIGEST)
        monkeypatch.setitem(sources.SOURCES, "bvlc_alexnet", source)
        yield site


@pytest.fixture
def unproven(monkeypatch):
    """Random weights recognise nothing."""
    monkeypatch.setattr(importing, "prove", lambda _weights: ["cat.jpg: a cat"])


@pytest.fixture
def get(site, tmp_path):
    """Ask for them; returns what was said, and what was told along the way."""

    def get(stop=None, **changes):
        said, told = [], []
        wanted = Wanted(**{"name": "bvlc_alexnet", "cache": tmp_path / "cache", **changes})
        path = ensure(wanted, say=said.append, told=told.append, stop=stop or threading.Event())
        return path, said, told

    return get


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_they_are_fetched_once(get, site, unproven, tmp_path):
    path, said, told = get()
    repository = read_repository(path)
    assert list(repository.models) == ["alexnet"], "the centre view alone"
    assert ensure_unpacked(repository, ("int8", "fp32")) == {"alexnet": repository.models["alexnet"].onnx}
    assert "unrestricted use. Trained on ImageNet, whose terms" in said[0], "before anything is fetched"
    assert "cat.jpg: a cat" in said
    assert any(re.fullmatch(r"downloading bvlc_alexnet: \d+ of \d+ MB, \d+ %", line) for line in told)
    assert told[-1] == "converting bvlc_alexnet"
    assert get() == (path, [], [])
    assert len(site.asked) == 1
    assert not any("caffemodel" in name for name in files(tmp_path / "cache")), "the download is not kept"
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []


def test_every_view_when_asked_for(get, unproven):
    path, _, _ = get(views=("center", "ten", "dense"))
    assert set(read_repository(path).models) == {"alexnet", "alexnet_10crop", "alexnet_dense"}


def test_int8_takes_three_hundred_photos(get, unproven, monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match="holds 3 photos; to calibrate int8 takes 300"):
        get(calibrate=FOLDER)
    assert files(tmp_path / "cache") == ["downloads/bvlc_alexnet.caffemodel"], "to be fetched no second time"
    monkeypatch.setattr(cache, "CALIBRATION_PHOTOS", 3)
    path, said, _ = get(calibrate=FOLDER)
    assert read_repository(path).card["precisions"] == ["fp32", "fp16", "int8"]
    assert re.fullmatch(r"int8 gives fp32's label in \d of 3 photos of .*", said[-1])


def test_weights_that_recognise_nothing_leave_nothing(get, tmp_path):
    with pytest.raises(WeightsError, match=r"it does not recognise the photos \(coffee\.jpg: "):
        get()
    assert files(tmp_path / "cache") == ["downloads/bvlc_alexnet.caffemodel"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["downloads"]


def test_two_at_once_fetch_once(get, site, unproven):
    with ThreadPoolExecutor(3) as pool:
        results = [future.result() for future in [pool.submit(get) for _ in range(3)]]
    assert len({path for path, _, _ in results}) == 1
    assert len(site.asked) == 1
    waited = [
        told
        for _, _, told in results
        if "waiting for another process that is downloading bvlc_alexnet" in told
    ]
    assert len(waited) == 2


def test_a_wrong_hash_leaves_nothing(get, site, tmp_path):
    site.data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(WeightsError, match=r"published is sha1:.* By hand: download http") as caught:
        get()
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "cache") == []


def test_no_network_says_what_to_fetch_by_hand(get, site, unproven, tmp_path):
    site.status = 503
    place = tmp_path / "cache" / "downloads" / "bvlc_alexnet.caffemodel"
    with pytest.raises(WeightsError, match=r"503 .*, 5 times; .*By hand: ") as caught:
        get()
    assert str(caught.value).endswith(f"By hand: download {site.url} to {place}")
    place.write_bytes(DATA)  # as it says
    assert get()[0].is_dir()


def test_a_full_disk_is_said_in_a_line(get, unproven, tmp_path):
    downloads = tmp_path / "cache" / "downloads"
    for there in (None, DATA):  # no room for the download; for the model
        if there is not None:
            (downloads / "bvlc_alexnet.caffemodel").write_bytes(there)
        with file_size_limit(len(DATA) // 2), pytest.raises(ValueError, match="File too large"):
            get()
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["downloads"]
        assert files(downloads) == ([] if there is None else ["bvlc_alexnet.caffemodel"])
    assert get()[0].is_dir()


def test_a_folder_that_cannot_be_written(get, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cannot write bvlc_alexnet to .*--weights-cache names another"):
        get()


def test_what_a_killed_process_left_is_swept(get, unproven, tmp_path):
    name = f"bvlc_alexnet-fp32-center-{PREPROCESS_VERSION}"
    left = tmp_path / "cache" / f".{name}.abc" / "repository"
    left.mkdir(parents=True)
    path, _, _ = get()
    assert path.name == name
    assert not left.exists()


def test_it_can_be_stopped(get, site):
    stop = threading.Event()
    stop.set()
    with pytest.raises(WeightsError, match="stopped"):
        get(stop)


def test_unknown_names_are_told_the_known_ones(get):
    with pytest.raises(WeightsError, match=r"no weights 'resnet'; there are imagenet, torchvision, bvlc"):
        get(name="resnet")
    assert Wanted("imagenet").source.name == "torchvision"


def test_the_list_says_which_are_here(get, unproven, tmp_path, capsys):
    get()
    assert main(["weights", "--weights-cache", str(tmp_path / "cache")]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert re.search(r"1000 +57\.1 % +80\.2 % +244 MB +yes +Released by", lines["bvlc_alexnet"])
    assert " no " in lines["torchvision"]


# The server itself.


@pytest.fixture
def starting(tmp_path):
    """Start the server on a site; returns a function, to be called with flags."""
    running = []

    def starting(site, *flags):
        environ = os.environ | {"ALEXNET_TEST_SITE": site.url, "ALEXNET_TEST_DIGEST": DIGEST}
        command = [sys.executable, str(Path(__file__).with_name("published.py")), "--weights=bvlc_alexnet"]
        command += ["--http-port=0", "--grpc-port=0", f"--weights-cache={tmp_path / 'cache'}", *flags]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=log)
        running.append(process)
        return process

    yield starting
    for process in running:
        process.kill()
        process.wait()


def until(condition, seconds=120):
    for _ in range(int(seconds / 0.05)):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def answer(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_alive_and_not_ready_while_it_downloads(starting, tmp_path):
    with serving(DATA, "bvlc_alexnet.caffemodel") as site:
        site.pause = threading.Event()
        process = starting(site, "--engine-threads=1", "--drain-delay-s=0")
        log = tmp_path / "log"
        found = until(lambda: re.search(r"listening on (http://\S+) and", log.read_text()))
        assert answer(f"{found[1]}/livez")[0] == 200
        until(lambda: "downloading bvlc_alexnet: " in answer(f"{found[1]}/readyz")[1])
        assert answer(f"{found[1]}/readyz")[0] == 503
        site.pause.set()
        until(lambda: answer(f"{found[1]}/readyz")[0] == 200)
        labels = json.loads(answer(f"{found[1]}/labels")[1])
        assert "tench" in json.dumps(labels)
        assert "whose terms of use ask for non-commercial research" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_sigterm_during_a_download_ends_it(starting, tmp_path):
    with serving(DATA, "bvlc_alexnet.caffemodel") as site:
        site.pause = threading.Event()
        process = starting(site, "--drain-delay-s=0")
        until(lambda: site.asked)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        site.pause.set()


def test_a_download_that_fails_ends_the_process(starting, tmp_path):
    with serving(DATA, "bvlc_alexnet.caffemodel") as site:
        site.status = 404
        process = starting(site)
        assert process.wait(60) == 1
        last = (tmp_path / "log").read_text().splitlines()[-1]
        assert last.startswith("alexnet-server: --weights bvlc_alexnet: http://127.0.0.1:")
        assert "By hand: download" in last
