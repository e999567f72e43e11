"""Pages of the project: links lead somewhere, each page says what it answers, tables agree with the code."""

import io
import json
import re
import subprocess
import tomllib
from urllib.parse import unquote

import pytest
import yaml
from fastapi.routing import iter_route_contexts
from PIL import Image, ImageChops

from alexnet_client.pb import classifier_pb2
from alexnet_server.errors import TABLE
from alexnet_server.models.export.card import readme
from alexnet_server.models.unpack import default_repository
from alexnet_server.settings import Settings
from tests.k8s.test_gateway import application
from tests.processes import ROOT
from tests.project.kernels import drawn

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
)
PAGES = sorted(name for name in TRACKED.stdout.splitlines() if name.endswith(".md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
API = (ROOT / "docs" / "api.md").read_text()


def anchors(text):
    """Of each heading, as forges make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(
        r"\]\((?!https?:|mailto:)([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    ):
        name, _, anchor = unquote(link).partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_opens_with_what_it_answers(page):
    title, question = re.match(r"# (.+)\n\n((?:.+\n)+)", (ROOT / page).read_text()).groups()
    assert title
    assert "?" in question


def test_the_index_names_every_page_of_the_documentation():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/index.md":
            assert f"({page.removeprefix('docs/')})" in index, page


def test_all_http_paths_are_in_the_table():
    told = set(re.findall(r"`(?:GET|POST) (/[^`]*)`|at `(/favicon.ico)`|below `(/page)`", API))
    told = {next(filter(None, each)) for each in told}
    offered = {route.path for route in iter_route_contexts(application().routes)}
    assert {path for path in offered if "/versions/" not in path} == told


def test_all_grpc_methods_are_in_the_table():
    for service in classifier_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert f"`{service.full_name}/{method.name}`" in API


def test_the_error_table_is_the_servers():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (yes|no) \|", API, re.M)
    assert [(code, int(http), grpc, again == "yes") for code, http, grpc, again in rows] == [
        (row.code, row.http_status, row.grpc_status, row.retryable) for row in TABLE.values()
    ]


def settings_table():
    """Each flag with its default and meaning, as `alexnet-server --help` tells them."""

    def shown(default):
        if isinstance(default, bool):
            return "on" if default else "off"
        if isinstance(default, int | float):
            return f"{default:,g}" if default < 10**5 else f"{default:,}"
        return default or "–"

    return "\n".join(
        f"| `--{name.replace('_', '-')}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )


def test_all_settings_are_documented():
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text(), settings_table()


def test_the_forges_files_run_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yaml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)[1].replace("$(BIN)/", ".venv/bin/")
    commands = [hook["entry"] for hook in hooks]
    assert commands == [*(line.strip() for line in lint.splitlines()), "make test"]


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, re.M) for name in line.split()}
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+) +\S", told, re.M)) == targets


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["preferred-citation"]["url"] == PROJECT["urls"]["Paper"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    client = tomllib.loads((ROOT / "clients" / "pyproject.toml").read_text())["project"]
    assert client["version"] == PROJECT["version"]
    minor = ".".join(PROJECT["version"].split(".")[:2])
    assert f"There is one at present: {minor}." in (ROOT / "SECURITY.md").read_text()


def test_the_picture_of_the_kernels_is_the_shipped_models():
    """In README and, by way of the file that a release takes its card from, on the card."""
    with Image.open(ROOT / "docs" / "kernels.png") as kept, Image.open(io.BytesIO(drawn())) as now:
        assert ImageChops.difference(kept, now).getbbox() is None, "run `make kernels-picture`"
    own = json.loads((ROOT / "training/cards/tiny-imagenet.json").read_text())
    assert (default_repository() / own["picture"]).resolve() == ROOT / "docs" / "kernels.png"
    card = json.loads((default_repository() / "card.json").read_text())
    assert card["picture"] == own["picture"]
    page = (default_repository() / "README.md").read_text()
    assert page == readme(card)
    assert f"]({own['picture']})" in page
    assert "](docs/kernels.png)" in (ROOT / "README.md").read_text()
