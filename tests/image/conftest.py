"""Images built for real with buildah, without a daemon; `make test-image`.

The base image stands in for Docker's (stand_in_base.sh). How this machine reaches its package index (its
pip files and certificates) is mounted into the build, and never part of the image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"} | dict(os.environ)
BUILD_TIMEOUT_S = 3600


def buildah(*arguments: str, timeout_s: float = 600) -> str:
    run = subprocess.run(
        ["buildah", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s
    )
    assert run.returncode == 0, f"buildah {' '.join(arguments)}\n{run.stdout[-2000:]}{run.stderr[-4000:]}"
    return run.stdout.strip()


def host_mounts() -> list[str]:
    """How this machine's pip finds packages, as read-only mounts."""
    homes = (".config/pip/pip.conf", ".pip/pip.conf")
    files = {Path("/etc/pip.conf"): "/etc/pip.conf"} | {
        Path.home() / name: str(Path("/", "root", name)) for name in homes
    }
    mounts = {str(path): target for path, target in files.items() if path.exists()}
    mounts |= {path: path for path in ("/etc/ssl/certs/ca-certificates.crt",) if Path(path).exists()}
    return [word for path, target in mounts.items() for word in ("--volume", f"{path}:{target}:ro")]


@dataclass(frozen=True)
class Image:
    """A built image, mounted."""

    name: str
    root: Path
    """Its file system, and the place where a container of it writes."""
    container: str
    config: dict[str, Any]
    added_bytes: int
    """Without the base image."""


def size_bytes(root: Path) -> int:
    """Of regular files, links counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            stat = os.lstat(os.path.join(folder, name))
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_size
    return total


@pytest.fixture(scope="session")
def build() -> Iterator[Callable[[str], Image]]:
    """`build("cpu")` builds a target of the Dockerfile and mounts it."""
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, buildah and debootstrap; missing: {', '.join(missing) or 'root'}")
    subprocess.run([str(Path(__file__).parent / "stand_in_base.sh"), BASE], env=ENVIRONMENT, check=True)
    containers: list[str] = []

    def mounted(name: str) -> tuple[str, Path]:
        container = buildah("from", "--pull=never", name)
        containers.append(container)
        return container, Path(buildah("mount", container))

    @cache
    def built(target: str) -> Image:
        name = f"localhost/alexnet:{target}"
        arguments = ["--pull=never", "--layers=false", "--format=docker", "--target", target, "--tag", name]
        # Debian's buildah does not see which stage a default value names, only a given one.
        arguments += ["--build-arg", f"PYTHON_IMAGE={BASE}", "--build-arg", "WEIGHTS=shipped"]
        arguments += [*host_mounts(), str(ROOT)]
        buildah("bud", "--quiet", *arguments, timeout_s=BUILD_TIMEOUT_S)
        container, root = mounted(name)
        _, base_root = mounted(BASE)
        config = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
        return Image(name, root, container, config, size_bytes(root) - size_bytes(base_root))

    yield built
    for container in containers:
        buildah("rm", container)
