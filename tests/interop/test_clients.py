"""Clients that we did not write, at their defaults. docs/interop.md lists them."""

import base64
import json
import os
import shutil

import httpx
import pytest

from tests.browser.chromium import NoChromium, open_chromium
from tests.interop.conftest import ENVIRONMENT, PROGRAMS, VALUE, finished, tool
from tests.processes import ROOT

pytestmark = pytest.mark.interop

BEST = f"class {VALUE}"


@pytest.mark.parametrize("kind", ["http", "grpc", "http.aio", "grpc.aio"])
def test_tritonclient(python, server, photo, kind):
    address = server.http_target if kind.startswith("http") else server.target
    answer = python("tritonclient", "triton_client.py", kind, address, photo)
    assert answer["best"].endswith(BEST)
    assert (answer["rows"], answer["ready"]) == ([3, 5], True)


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_kserve(python, server, kind):
    address = f"http://{server.http_target}" if kind == "rest" else server.target
    assert python("kserve", "kserve_client.py", kind, address) == {"rows": [3, 5], "ready": True}


@pytest.mark.parametrize("model", ["alexnet", "classify"])
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_perf_analyzer(server, photo, tmp_path, kind, model):
    analyzer = tool("perf_analyzer")
    libraries = ENVIRONMENT.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    environ = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    if (loaded := finished([analyzer, "--version"], env=environ)).returncode == 127:
        pytest.skip(f"{loaded.stderr.strip()} (Debian: apt install libb64-0d)")
    address = server.http_target if kind == "http" else server.target
    command = [analyzer, "-m", model, "-u", address, "-i", kind]
    command += ["--measurement-interval", "3000", "--stability-percentage", "500", "--max-trials", "3"]
    if model == "classify":
        data = tmp_path / "photos.json"
        element = len(photo.read_bytes()).to_bytes(4, "little") + photo.read_bytes()  # as BYTES travel
        encoded = base64.b64encode(element).decode()
        data.write_text(json.dumps({"data": [{"image": {"b64": encoded}}]}))
        command += ["--input-data", data]
    done = finished(command, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Throughput: " in done.stdout


def test_node_over_grpc(server, photo, tmp_path):
    packages = ENVIRONMENT / "node" / "node_modules"
    if not (packages / "@grpc" / "grpc-js").is_dir():
        pytest.skip("@grpc/grpc-js is not installed: make test-interop installs it where there is npm")
    shutil.copy(ROOT / "clients" / "samples" / "classify_grpc.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages)
    proto = ROOT / "clients" / "alexnet_client" / "pb" / "classifier.proto"
    done = finished([tool("node"), "classify_grpc.mjs", photo, server.target, proto], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert BEST in done.stdout


def test_curl_with_http2(server, photo):
    command = [
        tool("curl"),
        "-sS",
        "--http2",
        "-F",
        f"image=@{photo}",
        f"http://{server.http_target}/classify",
    ]
    done = finished(command)
    assert json.loads(done.stdout)["predictions"][0]["label"] == BEST, done.stdout


def test_java_at_its_defaults(server, photo, tmp_path):
    """`HttpClient` asks for HTTP/2 by an `Upgrade` header unless told otherwise."""
    program = ROOT / "tests" / "interop" / "programs" / "Upgrade.java"
    done = finished([tool("java"), program, photo, f"http://{server.http_target}/classify"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert BEST in done.stdout


FETCH = """
const [url, encoded, done] = arguments;
const photo = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
const form = new FormData();
form.append("image", new Blob([photo], {type: "image/png"}), "photo.png");
Promise.all([
  fetch(url, {method: "POST", body: form}),
  fetch(url, {method: "POST", body: photo, headers: {"content-type": "image/png", "x-request-id": "mine"}}),
]).then(async answers => done({
  labels: (await Promise.all(answers.map(each => each.json()))).map(each => each.predictions[0].label),
  ids: answers.map(each => each.headers.get("x-request-id")),
})).catch(error => done(String(error)));
"""


def test_a_browser_from_another_origin(server, origin, photo, tmp_path):
    try:
        browser = open_chromium(tmp_path)
    except NoChromium as missing:
        pytest.skip(str(missing))
    with browser:
        browser.get(origin)
        encoded = base64.b64encode(photo.read_bytes()).decode()
        answer = browser.execute_async_script(FETCH, f"http://{server.http_target}/classify", encoded)
    assert answer["labels"] == [BEST, BEST]
    assert answer["ids"][1] == "mine"


def test_a_generated_openapi_client(python, server, photo, tmp_path):
    document = httpx.get(f"http://{server.http_target}/openapi.json").json()
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    command = [
        tool("openapi-python-client"),
        "generate",
        "--path",
        path,
        "--output-path",
        tmp_path / "generated",
    ]
    done = finished([*command, "--meta", "none"])
    assert done.returncode == 0, done.stdout + done.stderr
    answer = python(
        "openapi_python_client", "generated_client.py", tmp_path, f"http://{server.http_target}", photo
    )
    assert answer == {"status": 200, "best": BEST}


@pytest.mark.parametrize("scenario", ["SingleStream", "Server"])
def test_mlperf_loadgen(python, server, photo, tmp_path, scenario):
    answer = python("mlperf_loadgen", "loadgen_client.py", scenario, server.http_target, photo, tmp_path)
    assert answer["wrong"] == []
    assert answer["valid"], answer["summary"]


def test_schemathesis(server, photo, tmp_path):
    """Every operation of the document, with requests that fit it and requests that do not.

    Not whether all that fit are taken: no document can say how many classes the model has, or that `model`
    and `views` exclude each other.
    """
    command = [tool("schemathesis"), "run", f"http://{server.http_target}/openapi.json"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--continue-on-failure"]
    command += ["--exclude-checks", "positive_data_acceptance", "-H", "X-Request-Timeout-Ms: 20000"]
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(PROGRAMS), "PHOTO": str(photo)}
    done = finished(command, env=os.environ | hooks, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
