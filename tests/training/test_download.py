import hashlib
import threading

import pytest
from full_disk import file_size_limit
from website import serving

from alexnet_server.models.public import download
from alexnet_server.models.public.download import fetch
from alexnet_server.models.public.errors import WeightsError

DATA = bytes(range(256)) * 20_000  # 5 MB: several chunks
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "WAIT_S", 0.0)


@pytest.fixture
def site():
    with serving(DATA, "alexnet.bin") as site:
        yield site


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_and_is_not_fetched_again(site, tmp_path):
    seen = []
    target = tmp_path / "below" / "alexnet.bin"
    assert (
        fetch((site.url,), target, DIGEST, progress=lambda have, total: seen.append((have, total))) == target
    )
    assert target.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert len(seen) > 3
    fetch((site.url,), target, DIGEST)
    assert len(site.asked) == 1
    assert names(target.parent) == ["alexnet.bin"]


def test_a_cut_connection_is_resumed(site, tmp_path):
    site.cuts = [2_000_000, 1_500_000]
    fetch((site.url,), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert site.asked == [None, "bytes=2000000-", "bytes=3500000-"]
    assert names(tmp_path) == ["file"]


def test_a_later_run_goes_on_where_the_last_one_ended(site, tmp_path):
    site.cuts = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(WeightsError, match=r"cut, 5 times; run it again to continue from 1,000,000 bytes"):
        fetch((site.url,), tmp_path / "file", DIGEST)
    assert names(tmp_path) == ["file.part", "file.part.tag"]
    fetch((site.url,), tmp_path / "file", DIGEST)
    assert site.asked[-1] == "bytes=1000000-"
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("trouble", ["no ranges", "no etag", "another file"])
def test_what_cannot_be_resumed_begins_again(site, tmp_path, trouble):
    site.cuts = [2_000_000]
    site.ranges = trouble != "no ranges"
    site.etag = None if trouble == "no etag" else '"one"'

    def change(have, total):
        if trouble == "another file":
            site.etag = '"two"'

    fetch((site.url,), tmp_path / "file", DIGEST, progress=change)
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_whole_part_is_taken_as_it_is(site, tmp_path):
    (tmp_path / "file.part").write_bytes(DATA)
    (tmp_path / "file.part.tag").write_text('"one"')
    fetch((site.url,), tmp_path / "file", DIGEST)
    assert site.asked == [f"bytes={len(DATA)}-"]
    assert names(tmp_path) == ["file"]


def test_a_flipped_byte_is_refused_and_thrown_away(site, tmp_path):
    site.data = DATA[:77] + b"!" + DATA[78:]
    with pytest.raises(WeightsError, match=r"published is sha256:.*damaged in transit"):
        fetch((site.url,), tmp_path / "file", DIGEST)
    assert names(tmp_path) == []
    fetch((site.url,), tmp_path / "file", None)
    assert names(tmp_path) == ["file"], "unless the caller says so"
    site.data = DATA
    fetch((site.url,), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA, "a file of another checksum is replaced"


def test_sha1_is_checked_too(site, tmp_path):
    fetch((site.url,), tmp_path / "file", "sha1:" + hashlib.sha1(DATA).hexdigest())
    with pytest.raises(WeightsError, match="sha1"):
        fetch((site.url,), tmp_path / "other", "sha1:" + "0" * 40)


def test_what_a_server_says_is_passed_on(site, tmp_path):
    site.status = 404
    with pytest.raises(WeightsError, match=r"404 Not Found. Another place: --url"):
        fetch((site.url,), tmp_path / "file", DIGEST)
    assert len(site.asked) == 1, "it will not be there at the next try either"
    site.status = 503
    with pytest.raises(WeightsError, match="503 Service Unavailable, 5 times"):
        fetch((site.url,), tmp_path / "file", DIGEST)


def test_nobody_there(tmp_path):
    with pytest.raises(WeightsError, match="refused, 5 times"):
        fetch(("http://127.0.0.1:9/none",), tmp_path / "file", DIGEST)


def test_a_mirror_is_asked_where_the_publisher_refuses(site, tmp_path):
    urls = (f"{site.url}.gone", site.url)
    site.missing = {urls[0]}
    fetch(urls, tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    with pytest.raises(WeightsError) as caught:
        fetch(urls[:1], tmp_path / "other", DIGEST)
    assert f"By hand: download {urls[0]} to {tmp_path / 'other'}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_gives_up_within_a_minute():
    """Pauses and timeouts together, whatever the server does or does not."""
    pauses = sum(1.0 * 2**attempt for attempt in range(download.ATTEMPTS - 1))
    assert pauses + download.ATTEMPTS * download.TIMEOUT_S <= download.RETRY_S == 60


def test_it_can_be_stopped(site, tmp_path):
    stop = threading.Event()
    with pytest.raises(WeightsError, match="stopped"):
        fetch((site.url,), tmp_path / "file", DIGEST, progress=lambda *_: stop.set(), stop=stop)
    assert len(site.asked) == 1


def test_a_full_disk_leaves_nothing(site, tmp_path):
    with file_size_limit(2_500_000), pytest.raises(OSError, match="File too large"):
        fetch((site.url,), tmp_path / "file", DIGEST)
    assert names(tmp_path) == []


def test_progress_is_told_at_the_end(site, tmp_path, capsys):
    fetch((site.url,), tmp_path / "file", DIGEST)
    assert "5 of 5 MB, 100 %" in capsys.readouterr().err
