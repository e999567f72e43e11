import os

import pytest

from alexnet_server.machine import usable_cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.fixture
def membership(tmp_path):
    path = tmp_path / "membership"
    path.write_text("0::/kubepods/pod1/box\n")
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_affinity_alone(tmp_path, membership):
    assert usable_cores(tmp_path / "none", membership) == 8
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("1600000 100000", 8),
        ("x", 8),
    ],
)
def test_version_2_quota(tmp_path, membership, quota, cores):
    write(tmp_path / "cpu.max", quota)
    assert usable_cores(tmp_path, membership) == cores


def test_the_tightest_group_above_counts(tmp_path, membership):
    write(tmp_path / "kubepods/cpu.max", "600000 100000")
    write(tmp_path / "kubepods/pod1/cpu.max", "300000 100000")
    write(tmp_path / "kubepods/pod1/box/cpu.max", "max 100000")
    assert usable_cores(tmp_path, membership) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3)])
def test_version_1_quota(tmp_path, quota, cores):
    membership = tmp_path / "membership"
    membership.write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    write(tmp_path / "cpu/box/cpu.cfs_quota_us", quota)
    write(tmp_path / "cpu/box/cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path, membership) == cores


def test_a_real_affinity(monkeypatch, tmp_path):
    monkeypatch.undo()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores(tmp_path, tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)
