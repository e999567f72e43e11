"""Every overlay, alone and with the components that may be added to it, passes every check."""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib
from ipaddress import ip_address, ip_network

import pytest

from alexnet_server.models.public.sources import source_named
from tests.k8s.checks import problems
from tests.k8s.conftest import COMPONENTS, EITHER, K8S, OVERLAYS, Render
from tests.k8s.manifests import of_kind, settings_of, workloads

SERVING = ("overlays/cpu", "overlays/gpu", "overlays/triton")
HAVE_MONITORING = ("overlays/gpu", "overlays/triton")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_as_it_stands(render: Render, overlay: str) -> None:
    objects = render(overlay)
    assert workloads(objects)
    assert problems(objects) == []


ADDED = [
    pair
    for pair in itertools.product(SERVING, COMPONENTS)
    if pair not in itertools.product(HAVE_MONITORING, ["monitoring"])
]


@pytest.mark.parametrize(("overlay", "component"), ADDED)
def test_with_each_component(render: Render, overlay: str, component: str) -> None:
    assert problems(render(overlay, component)) == []


@pytest.mark.parametrize("overlay", SERVING)
def test_with_all_components(render: Render, overlay: str) -> None:
    chosen = [
        name
        for name in COMPONENTS
        if name != EITHER[1] and (name != "monitoring" or overlay not in HAVE_MONITORING)
    ]
    objects = render(overlay, *chosen)
    assert problems(objects) == []
    assert all(
        item["metadata"].get("namespace") == "alexnet" for item in objects if item["kind"] != "Namespace"
    )


@pytest.mark.parametrize(
    "parts",
    [
        ("overlays/triton",),
        ("overlays/cpu", "tracing"),
        ("overlays/cpu", "model-import"),
        ("overlays/cpu", "import"),
    ],
)
@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_who_may_go_out_may_ask_for_names(render: Render, parts: tuple[str, ...], protocol: str) -> None:
    """Of the cluster's DNS, and of NodeLocal DNSCache at its own address or at Kubespray's."""
    policies = [policy for policy in of_kind(render(*parts), "NetworkPolicy") if policy["spec"].get("egress")]
    assert policies
    for policy in policies:
        rules = policy["spec"]["egress"]
        (peers,) = (rule["to"] for rule in rules if {"port": 53, "protocol": protocol} in rule["ports"])
        blocks = [ip_network(peer["ipBlock"]["cidr"]) for peer in peers if "ipBlock" in peer]
        for address in ("169.254.20.10", "169.254.25.10"):
            assert any(ip_address(address) in block for block in blocks), address
        (pods,) = (peer for peer in peers if "podSelector" in peer)
        assert pods["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}
        (chosen,) = pods["podSelector"]["matchExpressions"]
        assert {"kube-dns", "node-local-dns"} <= set(chosen["values"])


def test_tls_reaches_probes_services_and_scrapes(render: Render) -> None:
    objects = render("overlays/cpu", "monitoring", "tls")
    (server,) = workloads(objects)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server.spec["containers"][0][probe]["httpGet"]["scheme"] == "HTTPS"
    for service in of_kind(objects, "Service"):
        assert {port["appProtocol"] for port in service["spec"]["ports"]} == {"https"}
    (monitor,) = of_kind(objects, "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["scheme"] == "https"


@pytest.mark.parametrize(
    ("overlay", "targets"),
    [
        ("overlays/cpu", {"cpu"}),
        ("overlays/gpu", {"gpu"}),
        ("overlays/triton", {"triton", "tritonserver"}),
        ("overlays/kserve", {"cpu"}),
        ("training", {"train"}),
        ("import", {"cpu"}),
    ],
)
def test_images_are_this_version_of_a_target_of_the_dockerfile(
    render: Render, overlay: str, targets: set[str]
) -> None:
    version = tomllib.loads((K8S.parent / "pyproject.toml").read_text())["project"]["version"]
    images = {
        container["image"] for workload in workloads(render(overlay)) for container in workload.containers
    }
    assert images == {f"alexnet:{version}-{target}" for target in targets}


@pytest.mark.parametrize(
    ("overlay", "gpus"), [("overlays/gpu", "1"), ("overlays/triton", "1"), ("training", "2")]
)
def test_gpus(render: Render, overlay: str, gpus: str) -> None:
    limits = [c["resources"]["limits"] for w in workloads(render(overlay)) for c in w.containers]
    assert [limit["nvidia.com/gpu"] for limit in limits if "nvidia.com/gpu" in limit] == [gpus]


def test_overlays_scale_on_what_their_devices_run_short_of(render: Render) -> None:
    (hpa,) = of_kind(render("overlays/cpu"), "HorizontalPodAutoscaler")
    assert hpa["spec"]["metrics"][0]["resource"]["name"] == "cpu"
    queries = {
        item["metadata"]["name"]: item["spec"]["triggers"][0]["metadata"]["query"]
        for item in of_kind(render("overlays/triton"), "ScaledObject")
    }
    assert "alexnet_queue_views" in queries["alexnet"]
    assert "nv_inference_pending_request_count" in queries["alexnet-triton"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_comes_first(render: Render, overlay: str) -> None:
    """`kubectl apply` makes objects in this order, so that a fresh cluster takes them all at once."""
    assert [item["kind"] for item in render(overlay)].index("Namespace") == 0


def test_memory_requested_is_not_below_what_was_measured(render: Render) -> None:
    """Of a process with all three views at work: the largest figure of the sizing table."""
    text = (K8S.parent / "docs" / "benchmarks.md").read_text()
    table = text[text.index("| memory of a process") :].split("\n\n")[0]
    most_mib = max(int(figure.replace(",", "")) for figure in re.findall(r"\| ([\d,]+)(?= \|)", table))
    assert most_mib > 300
    for overlay in ("overlays/cpu", "overlays/kserve"):
        for workload in workloads(render(overlay)):
            for container in workload.containers:
                asked = container["resources"]["requests"]["memory"]
                assert asked.endswith("Mi")
                assert (
                    int(asked.removesuffix("Mi")) >= most_mib + 800 * 10**6 / 2**20
                )  # a large photo, decoded


def test_prometheus_of_the_usual_stack_finds_everything(render: Render) -> None:
    """kube-prometheus-stack selects by its release's name, Grafana's sidecar by a label of its own."""
    objects = render("overlays/triton")
    found = of_kind(objects, "ServiceMonitor", "PrometheusRule")
    assert len(found) == 3
    assert {item["metadata"]["labels"].get("release") for item in found} == {"kube-prometheus-stack"}
    (board,) = [item for item in of_kind(objects, "ConfigMap") if "dashboard.json" in item["data"]]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_changed_setting_is_a_rolling_update(render: Render) -> None:
    """The config map's name carries a hash of its content, and the deployment follows it."""
    plain, changed = (workloads(render("overlays/cpu", *extra))[0] for extra in ((), ("keys",)))
    names = [w.spec["containers"][0]["envFrom"][0]["configMapRef"]["name"] for w in (plain, changed)]
    assert names[0] != names[1]


@pytest.mark.parametrize("overlay", ["overlays/cpu", "overlays/gpu", "overlays/triton", "overlays/kserve"])
def test_settings_are_accepted_by_the_server(
    render: Render, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pytest.importorskip("alexnet_server.settings")
    components = [name for name in COMPONENTS if name != EITHER[1]] if overlay == "overlays/cpu" else ()
    objects = render(overlay, *components)
    for workload in workloads(objects):
        for container in workload.containers:
            environ = {k: v for k, v in settings_of(objects, container).items() if k.startswith("ALEXNET_")}
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            loaded = settings.load_settings([], environ)
            if environ:
                assert loaded.host == "0.0.0.0"
                assert loaded.log_format == "json"


def test_import(render: Render) -> None:
    """The published weights land where the component model-volume looks for them."""
    cli = pytest.importorskip("alexnet_train.cli")
    objects = render("overlays/cpu", "import")
    assert problems(objects) == []
    (job,) = [workload for workload in workloads(objects) if workload.owner["kind"] == "Job"]
    (container,) = job.containers
    assert container["command"] == ["alexnet-train"]
    options = cli._parser().parse_args(container["args"])
    source = source_named(options.weights)
    assert source is not None
    assert source.digest.startswith("sha256:")
    assert all(url.startswith("https://") for url in source.urls), (
        "the network policy lets out port 443 alone"
    )
    assert not options.unverified
    assert options.precision != "int8" or options.calibrate  # refused otherwise
    assert str(options.downloads) == "/tmp"
    served = render("overlays/cpu", "model-volume")
    (server,) = workloads(served)
    settings = settings_of(served, server.spec["containers"][0])
    assert str(options.repository) == settings["ALEXNET_MODEL_REPOSITORY"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for workload in (job, server)
        for volume in workload.spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}


def test_import_without_a_shared_volume(render: Render) -> None:
    """An init container writes where the server then reads, in the pod itself."""
    cli = pytest.importorskip("alexnet_train.cli")
    objects = render("overlays/cpu", "model-import")
    (pod,) = workloads(objects)
    fetch, server = pod.containers
    options = cli._parser().parse_args(fetch["args"])
    assert fetch["command"] == ["alexnet-train"]
    assert fetch["image"] == server["image"]  # of the overlay `cpu`; the others' init container has it too
    assert workloads(render("overlays/gpu", "model-import"))[0].containers[0]["image"] == fetch["image"]
    assert str(options.repository) == settings_of(objects, server)["ALEXNET_MODEL_REPOSITORY"]
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for container, read_only in ((fetch, False), (server, True)):
        (mount,) = [m for m in container["volumeMounts"] if options.repository.is_relative_to(m["mountPath"])]
        assert mount.get("readOnly", False) == read_only
        assert "emptyDir" in volumes[mount["name"]]
    assert not of_kind(objects, "PersistentVolumeClaim")


def test_training_commands_are_accepted(render: Render) -> None:
    """The job's words, parsed by the command line that will get them."""
    cli = pytest.importorskip("alexnet_train.cli")
    config = importlib.import_module("alexnet_train.config")
    (job,) = workloads(render("training"))
    prepare, train = (container["args"] for container in job.containers)
    assert prepare[0] == "alexnet-train"
    prepared = cli._parser().parse_args(prepare[1:])
    assert train[0] == "alexnet-train"
    run = cli._parser().parse_args(train[1:])
    assert run.recipe in config.RECIPES
    assert run.data == prepared.out
    assert run.parallel == "towers"
    assert run.processes == 2
    assert job.containers[1]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    mounts = {mount["mountPath"] for mount in job.containers[1]["volumeMounts"]}
    assert {str(run.out.parent), str(run.data.parent)} <= mounts
