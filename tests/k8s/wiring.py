"""How rendered objects refer to and reach one another; each check yields a line for whatever is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.k8s.manifests import Object, Objects, Workload, covers, of_kind, settings_of, workloads

PUBLIC_PATHS = {
    "/",
    "/classify",
    "/classify/batch",
    "/features",
    "/labels",
    "/models",
    "/docs",
    "/openapi.json",
    "/page/app.js",
    "/favicon.ico",
    "/explain",
    "/network/kernels.png",
    "/v2",
    "/v2/models/alexnet/infer",
    "/v2/health/ready",
    "/v2/repository/index",
}
"""Some of each kind; test_gateway.py asks the server for all."""
PUBLIC_PREFIXES = ("/v2", "/page", "/docs", "/network")
PRIVATE_PATHS = (
    "/metrics",
    "/metrics/",
    "/livez",
    "/readyz",
    "/debug",
    "/classify/../metrics",
    "/v2/repository/models/alexnet/load",
    "/v2/repository/models/alexnet/unload",
)
OTLP_PORT = 4317
HTTPS_PORT = 443
DNS_PORT = 53
DNS_PEERS = (
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {
            "matchExpressions": [
                {"key": "k8s-app", "operator": "In", "values": ["kube-dns", "node-local-dns"]}
            ]
        },
    },
    {"ipBlock": {"cidr": "169.254.0.0/16"}},
)
"""The cluster's DNS, the pods of NodeLocal DNSCache, and the addresses one of which that listens on."""


def selectors(objects: Objects) -> Iterator[str]:
    """Whatever selects pods selects those that are there."""
    pods = workloads(objects)
    for workload in pods:
        own = workload.owner["spec"].get("selector", {}).get("matchLabels", {})
        if not covers(own, workload.labels):
            yield f"{workload.name}: its selector does not match its own pods"
    for budget in of_kind(objects, "PodDisruptionBudget"):
        if not any(covers(budget["spec"]["selector"]["matchLabels"], pod.labels) for pod in pods):
            yield f"PodDisruptionBudget {budget['metadata']['name']}: selects nothing"


def services(objects: Objects) -> Iterator[str]:
    """A service has one workload behind it, with its ports; a monitor finds one service, with its ports."""
    pods, found = workloads(objects), of_kind(objects, "Service")
    for service in found:
        chosen = [pod for pod in pods if covers(service["spec"]["selector"], pod.labels)]
        wanted = [port["targetPort"] for port in service["spec"]["ports"]]
        if len(chosen) != 1 or not set(wanted) <= set(chosen[0].ports):
            yield f"Service {service['metadata']['name']}: no single workload has its ports {wanted}"
    for monitor in of_kind(objects, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        seen = [service for service in found if covers(labels, service["metadata"]["labels"])]
        names = {port["name"] for service in seen for port in service["spec"]["ports"]}
        if len(seen) != 1 or not {end["port"] for end in monitor["spec"]["endpoints"]} <= names:
            yield f"ServiceMonitor {monitor['metadata']['name']}: must find one service and its port"


def references(objects: Objects) -> Iterator[str]:
    """Service accounts and config maps that pods name are there."""
    maps = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    for workload in workloads(objects):
        account = workload.spec.get("serviceAccountName")
        if workload.owner["kind"] != "InferenceService" and account not in accounts:
            yield f"{workload.name}: no service account {account}"
        for container in workload.containers:
            used = {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
            yield from (f"{workload.name}: no config map {name}" for name in used - maps)


def network(objects: Objects) -> Iterator[str]:
    """Denied by default; every port opened is one that something listens on, and every door is open."""
    pods = workloads(objects)
    policies = of_kind(objects, "NetworkPolicy")
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if deny not in [policy["spec"] for policy in policies]:
        yield "no policy denies everything by default"
    opened: set[tuple[str, int]] = set()
    for policy in policies:
        name, spec = f"NetworkPolicy {policy['metadata']['name']}", policy["spec"]
        if spec == deny:
            continue
        chosen = [pod for pod in pods if covers(spec["podSelector"].get("matchLabels", {}), pod.labels)]
        if not spec["podSelector"] or not chosen:
            yield f"{name}: selects no particular pods"
        for rule in spec.get("ingress", []):
            yield from (f"{name}: {problem}" for problem in _ingress(chosen, rule, opened))
        for rule in spec.get("egress", []):
            yield from (f"{name}: {problem}" for problem in _egress(objects, chosen, rule))
    for pod in pods:
        # Triton's HTTP port is for probes, which come from the node itself.
        for number in set(pod.ports.values()) - {pod.ports.get("triton-http")}:
            if (pod.name, number) not in opened:
                yield f"{pod.name}: port {number} is closed to everybody"


def _ingress(chosen: list[Workload], rule: Object, opened: set[tuple[str, int]]) -> Iterator[str]:
    if not rule.get("from"):
        yield "open to everybody"
    for pod, port in itertools.product(chosen, [item["port"] for item in rule["ports"]]):
        number = pod.ports.get(port, port)
        opened.add((pod.name, number))
        if number not in pod.ports.values():
            yield f"opens {port}, where {pod.name} does not listen"


def _egress(objects: Objects, chosen: list[Workload], rule: Object) -> Iterator[str]:
    if not rule.get("to"):
        yield "lets pods talk to everybody"
    numbers = sorted((item["port"], item.get("protocol", "TCP")) for item in rule["ports"])
    if DNS_PORT in dict(numbers) and numbers != [(DNS_PORT, "TCP"), (DNS_PORT, "UDP")]:
        yield f"DNS wants both protocols, not {numbers}"
    if DNS_PORT in dict(numbers) and rule.get("to") != list(DNS_PEERS):
        yield "DNS may be the cluster's pods or the node's cache; both must be reachable"
    pods = workloads(objects)
    for peer, port in itertools.product(rule.get("to", []), [item["port"] for item in rule["ports"]]):
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        if port == DNS_PORT and peer in DNS_PEERS:
            continue
        namespace = (
            peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
        )
        if namespace is None and any(
            covers(labels, pod.labels) and port in pod.ports.values() for pod in pods
        ):
            continue
        if "ipBlock" in peer and port == HTTPS_PORT and _fetchers(chosen):
            continue
        settings = [settings_of(objects, container) for pod in chosen for container in pod.containers]
        collector = [item.get("OTEL_EXPORTER_OTLP_ENDPOINT", "") for item in settings]
        if port == OTLP_PORT and all(address.endswith(f".{namespace}.svc:{port}") for address in collector):
            continue
        yield f"lets pods talk to port {port} of {peer}, where nothing of ours is"


def _fetchers(pods: list[Workload]) -> bool:
    """Pods whose first container fetches weights."""
    return all("import" in pod.containers[0].get("args", []) for pod in pods)


def routes(objects: Objects) -> Iterator[str]:
    """Outside callers reach the public paths and services, all of them, and nothing else."""
    services = {
        (item["metadata"]["name"], port["port"])
        for item in of_kind(objects, "Service")
        for port in item["spec"]["ports"]
    }
    for route in of_kind(objects, "HTTPRoute", "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for back in rule["backendRefs"]:
                if (back["name"], back["port"]) not in services:
                    yield f"{route['kind']}: routes to {back['name']}:{back['port']}, which is not there"
            if not rule.get("matches"):
                yield f"{route['kind']}: a rule without matches routes everything"
    for route in of_kind(objects, "HTTPRoute"):
        matches = [match["path"] for rule in route["spec"]["rules"] for match in rule.get("matches", [])]
        yield from (f"HTTPRoute: {path} is public" for path in PRIVATE_PATHS if routed(matches, path))
        yield from (f"HTTPRoute: {path} is not routed" for path in PUBLIC_PATHS if not routed(matches, path))
        for match in matches:
            if match["value"] not in PUBLIC_PATHS and not match["value"].startswith(PUBLIC_PREFIXES):
                yield f"HTTPRoute: {match['value']} is not a public path"


def routed(matches: Objects, path: str) -> bool:
    """True when a route's matches let `path` through."""
    for match in matches:
        value = match["value"].rstrip("/")
        if match["type"] == "Exact" and path == match["value"]:
            return True
        if match["type"] == "PathPrefix" and (path == value or path.startswith(value + "/")):
            return True
    return False
