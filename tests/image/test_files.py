"""What the images are made of, as far as it can be told without building them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.image.conftest import ROOT

LOCKS = ROOT / "docker" / "locks"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"cpu": ("cpu", "otel"), "gpu": ("gpu", "otel"), "triton": ("triton", "otel"), "train": ("train",)}
TARGETS = (*EXTRAS, "tritonserver")


def pins(name: str) -> dict[str, Version]:
    """Package to version, of one lock file."""
    lines = re.findall(
        r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE
    )
    return {canonicalize_name(package): Version(version) for package, version in lines}


def wanted(extra: str) -> list[Requirement]:
    """What an extra asks for, those that it includes and the base as well."""
    words = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
    requirements = [Requirement(word) for word in words]
    included = [
        inner for requirement in requirements if requirement.name == "alexnet" for inner in requirement.extras
    ]
    return [r for r in requirements if r.name != "alexnet"] + [r for inner in included for r in wanted(inner)]


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_every_package_is_pinned_by_hash_and_from_nowhere_in_particular(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    assert "://" not in text
    assert "--index" not in text
    assert "--extra-index" not in text


@pytest.mark.parametrize("target", EXTRAS)
def test_locks_hold_what_the_extras_ask_for(target: str) -> None:
    """`make lock` has been run since the requirements changed."""
    pinned = pins(target)
    for requirement in (requirement for extra in EXTRAS[target] for requirement in wanted(extra)):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in docker/locks/{target}.txt; run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} but {version}; run `make lock`"


def test_each_target_has_its_own_runtime() -> None:
    assert {"openvino", "onnxruntime"} <= pins("cpu").keys()
    assert "onnxruntime-gpu" in pins("gpu")
    assert not {"onnxruntime", "onnxruntime-gpu"} & pins("triton").keys()
    assert not {"torch"} & (pins("cpu").keys() | pins("gpu").keys() | pins("triton").keys())
    assert "torch" in pins("train")


def test_the_dockerfile_has_all_targets_and_trusts_only_locks() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    assert set(TARGETS) <= set(stages)
    script = (ROOT / "docker" / "environment.sh").read_text()
    commands = re.split(r"&&|\n(?! )", text.replace("\\\n", " ") + script)
    installs = [command for command in commands if re.search(r"\bpip\b.* install ", command)]
    assert len(installs) == 4  # what builds, what is locked, our wheel, and Triton's
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install


def test_train_has_the_c_compiler_that_every_recipe_compiles_with_and_no_rights() -> None:
    stage = re.search(r"^FROM final AS train\n(.*?)^FROM ", (ROOT / "Dockerfile").read_text(), re.M | re.S)
    assert stage is not None
    installed = re.search(r"apt-get install .*", stage[1])
    assert installed is not None
    assert {"gcc", "libc6-dev"} <= set(installed[0].split())
    assert re.findall(r"^USER (\S+)", stage[1], re.M)[-1] == "10001:10001"


def test_versions_agree() -> None:
    version = PROJECT["version"]
    assert set(re.findall(r"ARG VERSION=(\S+)", (ROOT / "Dockerfile").read_text())) == {version}
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["image"] == f"alexnet:{version}-{service['build']['target']}"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert 0 < service["pids_limit"] <= 1024
        assert re.fullmatch("[1-9]g", service["mem_limit"])
        assert service["memswap_limit"] == service["mem_limit"]
    assert {service["build"]["target"] for service in services.values()} == set(TARGETS) - {"train"}


def test_the_licence_names_the_weights_where_they_are() -> None:
    expression = PROJECT["license"]
    assert expression == "Apache-2.0 AND LicenseRef-AlexNet-Weights"
    assert PROJECT["license-files"] == ["LICENSE", "LICENSE-WEIGHTS"]
    text = (ROOT / "Dockerfile").read_text()
    labels = dict(re.findall(r'^FROM \S+ AS licence-(\w+)\nLABEL \S+licenses="([^"]+)"', text, re.MULTILINE))
    assert labels == {"shipped": expression, "none": "Apache-2.0"}
    assert "FROM licence-${WEIGHTS} AS final" in text
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == ["cpu"]  # `docker build` without a target
    (named,) = re.findall(r"model_repository/[\w./-]+", (ROOT / "LICENSE-WEIGHTS").read_text())
    assert (ROOT / named).is_file()


@pytest.mark.parametrize("weights", [True, False])
def test_models_are_unpacked_where_there_are_weights(tmp_path: Path, weights: bool) -> None:
    """docker/models.sh, with the image's paths in a folder."""
    (tmp_path / "model_repository").mkdir()
    if weights:
        (tmp_path / "model_repository" / "alexnet.weights").touch()
    server = tmp_path / "alexnet-server"
    server.write_text('#!/bin/sh\nmkdir "$4" && echo "$@" >"$4/called"\n')
    server.chmod(0o755)
    script = (ROOT / "docker" / "models.sh").read_text().replace("/opt/alexnet/bin", str(tmp_path))
    script = script.replace("/models", str(tmp_path / "models"))
    subprocess.run(["sh", "-c", script, "models.sh", "int8"], cwd=tmp_path, check=True)
    called = tmp_path / "models" / "called"
    assert called.exists() == weights
    assert not weights or called.read_text() == f"unpack --precision int8 {tmp_path / 'models'}\n"
