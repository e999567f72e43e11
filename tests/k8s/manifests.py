"""What is asked of rendered objects: each check yields a line for everything wrong, and nothing when all is well."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Object = dict[str, Any]
Objects = list[Object]
Check = Callable[[Objects], Iterator[str]]

KUBERNETES = ("1.32", "1.37")
"""Versions whose published schemas the objects must satisfy, oldest and newest."""
CUSTOM = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text())

PUBLIC_PATHS = {"/", "/classify", "/classify/batch", "/features", "/labels", "/models", "/docs", "/openapi.json"}
PUBLIC_PREFIXES = ("/v2",)
PRIVATE_PATHS = ("/metrics", "/metrics/", "/livez", "/readyz", "/debug", "/classify/../metrics")
OTLP_PORT = 4317


@dataclass(frozen=True)
class Workload:
    """A pod template, wherever it stands."""

    name: str
    labels: dict[str, str]
    spec: Object
    owner: Object

    @property
    def containers(self) -> list[Object]:
        """All of them, init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Named container ports."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
        }


def of_kind(objects: Objects, *kinds: str) -> Objects:
    """Objects of these kinds."""
    return [item for item in objects if item["kind"] in kinds]


def workloads(objects: Objects) -> list[Workload]:
    """Deployments, jobs, and the pod that KServe will make of a runtime and an inference service."""
    found = [
        Workload(
            f"{item['kind']} {item['metadata']['name']}",
            item["spec"]["template"]["metadata"]["labels"],
            item["spec"]["template"]["spec"],
            item,
        )
        for item in of_kind(objects, "Deployment", "Job", "StatefulSet", "DaemonSet")
    ]
    for service in of_kind(objects, "InferenceService"):
        predictor = service["spec"]["predictor"]
        for runtime in of_kind(objects, "ServingRuntime"):
            if runtime["metadata"]["name"] != predictor["model"].get("runtime"):
                continue
            pod = {key: value for key, value in predictor.items() if key not in _KSERVE_FIELDS}
            pod |= {key: runtime["spec"][key] for key in ("containers", "volumes")}
            name = service["metadata"]["name"]
            found.append(
                Workload(f"InferenceService {name}", {"serving.kserve.io/inferenceservice": name}, pod, service)
            )
    return found


_KSERVE_FIELDS = ("model", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")


def schemas(objects: Objects) -> Iterator[str]:
    """Strictly valid: built-in kinds against Kubernetes' schemas, others against the fields we know of them."""
    for item in objects:
        kind = f"{item['apiVersion']}/{item['kind']}"
        if kind in CUSTOM["kinds"]:
            yield from _custom(item, CUSTOM["kinds"][kind])
        else:
            yield from _builtin(item)
    for workload in workloads(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": workload.spec}
        yield from (f"{workload.name}: {problem}" for problem in _builtin(pod))


def _custom(item: Object, spec: Object) -> Iterator[str]:
    schema = {
        "definitions": CUSTOM["definitions"],
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"$ref": "#/definitions/metadata"},
            "spec": {"type": "object", "additionalProperties": False, **spec},
        },
    }
    for error in jsonschema.Draft7Validator(schema).iter_errors(item):
        yield f"{item['kind']} {item['metadata'].get('name')}: {error.json_path}: {error.message[:200]}"


def _builtin(item: Object) -> Iterator[str]:
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{item['kind']} {item['metadata'].get('name')} on {version}: {error.message[:200]}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{item['apiVersion']} {item['kind']}: no schema for {version}, and none in custom_resources.yaml"


def restricted(objects: Objects) -> Iterator[str]:
    """Namespace and pods obey the restricted pod security standard, with a read-only root besides."""
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {namespace['metadata']['name']} does not enforce the restricted level"
    for workload in workloads(objects):
        pod = workload.spec.get("securityContext", {})
        for container in workload.containers:
            where = f"{workload.name}, container {container['name']}"
            own = container.get("securityContext", {})
            context = pod | own
            if not context.get("runAsNonRoot") or not context.get("runAsUser"):
                yield f"{where}: may run as root"
            if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
                yield f"{where}: no seccomp profile"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{where}: root file system is writable"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{where}: may gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: keeps capabilities"
            if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
                yield f"{where}: root is read-only and nothing is mounted on /tmp"
        if workload.spec.get("automountServiceAccountToken") is not False:
            yield f"{workload.name}: the service account's token is mounted"


def resources(objects: Objects) -> Iterator[str]:
    """Every container states what it needs and may use; threads follow the CPU limit."""
    for workload in workloads(objects):
        for container in workload.containers:
            where = f"{workload.name}, container {container['name']}"
            asked = container.get("resources", {})
            for bound, resource in itertools.product(("requests", "limits"), ("cpu", "memory")):
                if resource not in asked.get(bound, {}):
                    yield f"{where}: no {resource} in {bound}"
            gpus = {asked.get(bound, {}).get("nvidia.com/gpu") for bound in ("requests", "limits")}
            if len(gpus) > 1:
                yield f"{where}: GPU request and limit differ"
            if not is_server(container):
                continue
            threads = [item for item in container["env"] if item["name"] == "ALEXNET_ENGINE_THREADS"]
            field = threads[0].get("valueFrom", {}).get("resourceFieldRef", {}) if threads else {}
            if (field.get("resource"), field.get("containerName")) != ("limits.cpu", container["name"]):
                yield f"{where}: ALEXNET_ENGINE_THREADS does not come from its CPU limit"


def is_server(container: Object) -> bool:
    """True for a container that runs `alexnet-server`."""
    names = [item["name"] for item in container.get("env", [])]
    return container["name"] == "server" or any(name.startswith("ALEXNET_") for name in names)


def probes(objects: Objects) -> Iterator[str]:
    """Start and readiness ask for readiness, liveness for life alone; all at a port that the container has."""
    for workload in workloads(objects):
        if workload.owner["kind"] == "Job":
            continue
        for container in workload.spec["containers"]:
            ready, live = ("/readyz", "/livez") if is_server(container) else ("/v2/health/ready", "/v2/health/live")
            http = workload.ports.get("http", workload.ports.get("http1", workload.ports.get("triton-http")))
            for probe, path in (("startupProbe", ready), ("readinessProbe", ready), ("livenessProbe", live)):
                get = container.get(probe, {}).get("httpGet", {})
                port = workload.ports.get(get.get("port"), get.get("port"))
                if (get.get("path"), port) != (path, http):
                    yield f"{workload.name}: {probe} asks {get.get('path')} at {port}, not {path} at {http}"


def settings_of(objects: Objects, container: Object) -> dict[str, str]:
    """A container's environment, literal values and config maps joined."""
    maps = {item["metadata"]["name"]: item.get("data", {}) for item in of_kind(objects, "ConfigMap")}
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= maps.get(source["configMapRef"]["name"], {})
    return values | {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}


def grace(objects: Objects) -> Iterator[str]:
    """The grace period outlasts preStop, drain and shutdown together."""
    for workload in workloads(objects):
        if workload.owner["kind"] == "Job":
            continue
        allowed = workload.spec.get("terminationGracePeriodSeconds", 30)
        for container in workload.spec["containers"]:
            settings = settings_of(objects, container)
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
            if not sleep:
                yield f"{workload.name}: no preStop sleep; SIGTERM may overtake the endpoints"
                continue
            stop = sum(float(settings.get(f"ALEXNET_{name}", 30)) for name in ("DRAIN_DELAY_S", "SHUTDOWN_TIMEOUT_S"))
            needed = sleep + (stop if is_server(container) else _TRITON_EXIT_S)
            if allowed <= needed:
                yield f"{workload.name}: a grace period of {allowed} s, but stopping may take {needed:g} s"


_TRITON_EXIT_S = 30
"""Triton's default for --exit-timeout-secs."""


def scaling(objects: Objects) -> Iterator[str]:
    """One autoscaler at most for a workload, which then sets no replicas of its own; two replicas at least."""
    targets: list[tuple[str, str]] = []
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        spec, name = scaler["spec"], f"{scaler['kind']} {scaler['metadata']['name']}"
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        high = spec.get("maxReplicas", spec.get("maxReplicaCount", 0))
        if not 2 <= low <= high:
            yield f"{name}: {low} to {high} replicas"
        targets.append((spec["scaleTargetRef"].get("kind", "Deployment"), spec["scaleTargetRef"]["name"]))
    for target in set(targets):
        if targets.count(target) > 1:
            yield f"{target[0]} {target[1]} has {targets.count(target)} autoscalers"
    owners = {(w.owner["kind"], w.owner["metadata"]["name"]): w.owner for w in workloads(objects)}
    yield from (f"autoscaler for {kind} {name}, which is not there" for kind, name in targets if (kind, name) not in owners)
    for key, owner in owners.items():
        if key in targets and "replicas" in owner["spec"]:
            yield f"{key[0]} {key[1]}: replicas beside an autoscaler"
        if key[0] == "Deployment" and key not in targets:
            yield f"Deployment {key[1]}: nothing scales it"


def covers(selector: Object, labels: dict[str, str]) -> bool:
    """True when `matchLabels` (or a service's plain selector) holds for `labels`."""
    return selector.items() <= labels.items()


def selectors(objects: Objects) -> Iterator[str]:
    """Whatever selects something selects what is there, and asks for ports that it has."""
    pods = workloads(objects)
    for workload in pods:
        own = workload.owner["spec"].get("selector", {}).get("matchLabels", {})
        if not covers(own, workload.labels):
            yield f"{workload.name}: its selector does not match its own pods"
    for budget in of_kind(objects, "PodDisruptionBudget"):
        if not any(covers(budget["spec"]["selector"]["matchLabels"], pod.labels) for pod in pods):
            yield f"PodDisruptionBudget {budget['metadata']['name']}: selects nothing"
    services = of_kind(objects, "Service")
    for service in services:
        chosen = [pod for pod in pods if covers(service["spec"]["selector"], pod.labels)]
        wanted = [port["targetPort"] for port in service["spec"]["ports"]]
        if len(chosen) != 1 or not set(wanted) <= set(chosen[0].ports):
            yield f"Service {service['metadata']['name']}: no single workload has its ports {wanted}"
    for monitor in of_kind(objects, "ServiceMonitor"):
        found = [s for s in services if covers(monitor["spec"]["selector"]["matchLabels"], s["metadata"]["labels"])]
        names = {port["name"] for service in found for port in service["spec"]["ports"]}
        if len(found) != 1 or not {end["port"] for end in monitor["spec"]["endpoints"]} <= names:
            yield f"ServiceMonitor {monitor['metadata']['name']}: must find one service and its port"
    maps = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    for workload in pods:
        if workload.owner["kind"] != "InferenceService" and workload.spec.get("serviceAccountName") not in accounts:
            yield f"{workload.name}: its service account is not there"
        for container in workload.containers:
            used = {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
            yield from (f"{workload.name}: no config map {name}" for name in used - maps)


def network(objects: Objects) -> Iterator[str]:
    """All traffic is denied by default; every port opened is one that something listens on, and every door is open."""
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
            if not rule.get("from"):
                yield f"{name}: open to everybody"
            for pod, port in itertools.product(chosen, [item["port"] for item in rule["ports"]]):
                number = pod.ports.get(port, port)
                opened.add((pod.name, number))
                if number not in pod.ports.values():
                    yield f"{name}: opens {port}, where {pod.name} does not listen"
        for rule in spec.get("egress", []):
            yield from (f"{name}: {problem}" for problem in _egress(objects, chosen, rule))
    for pod in pods:
        private = {pod.ports.get("triton-http")}
        for number in set(pod.ports.values()) - private:
            if (pod.name, number) not in opened:
                yield f"{pod.name}: port {number} is closed to everybody"


def _egress(objects: Objects, chosen: list[Workload], rule: Object) -> Iterator[str]:
    if not rule.get("to"):
        yield "lets pods talk to everybody"
    pods = workloads(objects)
    for peer, port in itertools.product(rule.get("to", []), [item["port"] for item in rule["ports"]]):
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
        if (namespace, labels.get("k8s-app"), port) == ("kube-system", "kube-dns", 53):
            continue
        if namespace is None and any(covers(labels, pod.labels) and port in pod.ports.values() for pod in pods):
            continue
        settings = [settings_of(objects, container) for pod in chosen for container in pod.containers]
        collector = [item.get("OTEL_EXPORTER_OTLP_ENDPOINT", "") for item in settings]
        if port == OTLP_PORT and all(address.endswith(f".{namespace}.svc:{port}") for address in collector):
            continue
        yield f"lets pods talk to port {port} of {peer}, where nothing of ours is"


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
        yield from (f"HTTPRoute: {path} is public" for path in PRIVATE_PATHS if _routed(matches, path))
        yield from (f"HTTPRoute: {path} is not routed" for path in PUBLIC_PATHS if not _routed(matches, path))
        for match in matches:
            if match["value"] not in PUBLIC_PATHS and not match["value"].startswith(PUBLIC_PREFIXES):
                yield f"HTTPRoute: {match['value']} is not a public path"


def _routed(matches: Objects, path: str) -> bool:
    for match in matches:
        value = match["value"].rstrip("/")
        if match["type"] == "Exact" and path == match["value"]:
            return True
        if match["type"] == "PathPrefix" and (path == value or path.startswith(value + "/")):
            return True
    return False


CHECKS: tuple[Check, ...] = (
    schemas,
    restricted,
    resources,
    probes,
    grace,
    scaling,
    selectors,
    network,
    routes,
)


def problems(objects: Objects) -> list[str]:
    """Everything that any check finds."""
    return [f"{check.__name__}: {problem}" for check in CHECKS for problem in check(objects)]
