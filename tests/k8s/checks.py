"""What is asked of rendered objects: each check yields a line for whatever is wrong."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from tests.k8s.manifests import Object, Objects, covers, is_server, of_kind, settings_of, workloads
from tests.k8s.wiring import network, references, routes, selectors, services

ROOT = Path(__file__).parents[2]
Check = Callable[[Objects], Iterator[str]]

KUBERNETES = ("1.32", "1.37")
"""Versions whose published schemas the objects must satisfy, oldest and newest."""
LABELS = {
    "app.kubernetes.io/name": "alexnet",
    "app.kubernetes.io/instance": "alexnet",
    "app.kubernetes.io/part-of": "alexnet",
    "app.kubernetes.io/version": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
    "app.kubernetes.io/managed-by": "kustomize",
}
CUSTOM = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text())


def schemas(objects: Objects) -> Iterator[str]:
    """Strictly valid: built-in kinds by Kubernetes' schemas, others by the fields we know of them."""
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
    yield from _builtin_cached(json.dumps(item, sort_keys=True))


@cache
def _builtin_cached(text: str) -> tuple[str, ...]:
    """Validation takes a tenth of a second, and overlays share most of their objects."""
    item, found = json.loads(text), []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{item['kind']} {item['metadata'].get('name')} on {version}: {error.message[:200]}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(
                f"{item['apiVersion']} {item['kind']}: no schema for {version}, nor in custom_resources.yaml"
            )
    return tuple(found)


def labels(objects: Objects) -> Iterator[str]:
    """Every object, and every pod, carries the labels that Kubernetes recommends."""
    for item in objects:
        where = f"{item['kind']} {item['metadata']['name']}"
        templates = [item["spec"]["template"]["metadata"]] if item["kind"] in ("Deployment", "Job") else []
        for metadata in (item["metadata"], *templates):
            given = metadata.get("labels", {})
            wrong = {name for name, value in LABELS.items() if given.get(name) != value}
            if "app.kubernetes.io/component" not in given:
                wrong.add("app.kubernetes.io/component")
            yield from (f"{where}: label {name} is {given.get(name)}" for name in sorted(wrong))


def restricted(objects: Objects) -> Iterator[str]:
    """Namespace and pods obey the restricted pod security standard, with a read-only root besides."""
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {namespace['metadata']['name']} does not enforce the restricted level"
    for workload in workloads(objects):
        pod = workload.spec.get("securityContext", {})
        for container in workload.containers:
            for problem in _lax(pod, container):
                yield f"{workload.name}, container {container['name']}: {problem}"
        if workload.spec.get("automountServiceAccountToken") is not False:
            yield f"{workload.name}: the service account's token is mounted"


def _lax(pod: Object, container: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    context = pod | own
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if not own.get("readOnlyRootFilesystem"):
        yield "root file system is writable"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
        yield "root is read-only and nothing is mounted on /tmp"


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


def probes(objects: Objects) -> Iterator[str]:
    """Start and readiness ask for readiness, liveness for life alone; all at the HTTP port."""
    for workload in workloads(objects):
        if workload.owner["kind"] == "Job":
            continue
        for container in workload.spec["containers"]:
            ready, live = (
                ("/readyz", "/livez") if is_server(container) else ("/v2/health/ready", "/v2/health/live")
            )
            http = workload.ports.get("http", workload.ports.get("http1", workload.ports.get("triton-http")))
            for probe, path in (("startupProbe", ready), ("readinessProbe", ready), ("livenessProbe", live)):
                get = container.get(probe, {}).get("httpGet", {})
                port = workload.ports.get(get.get("port"), get.get("port"))
                if (get.get("path"), port) != (path, http):
                    yield f"{workload.name}: {probe} asks {get.get('path')} at {port}, not {path} at {http}"


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
            stop = sum(
                float(settings.get(f"ALEXNET_{name}", 30)) for name in ("DRAIN_DELAY_S", "SHUTDOWN_TIMEOUT_S")
            )
            needed = sleep + (stop if is_server(container) else _triton_exit_s(container))
            if allowed <= needed:
                yield f"{workload.name}: a grace period of {allowed} s, but stopping may take {needed:g} s"


def _triton_exit_s(container: Object) -> int:
    """Triton's --exit-timeout-secs, by default 30."""
    for word in container.get("args", []):
        if word.startswith("--exit-timeout-secs="):
            return int(word.split("=")[1])
    return 30


def scaling(objects: Objects) -> Iterator[str]:
    """One autoscaler for each deployment, which sets no replicas of its own; two replicas at least."""
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
    yield from (
        f"autoscaler for {kind} {name}, which is not there"
        for kind, name in targets
        if (kind, name) not in owners
    )
    for key, owner in owners.items():
        if key in targets and "replicas" in owner["spec"]:
            yield f"{key[0]} {key[1]}: replicas beside an autoscaler"
        if key[0] == "Deployment" and key not in targets:
            yield f"Deployment {key[1]}: nothing scales it"


def availability(objects: Objects) -> Iterator[str]:
    """A deployment's pods spread over nodes, a budget guards them, and a rollout takes none away."""
    budgets = [item["spec"]["selector"]["matchLabels"] for item in of_kind(objects, "PodDisruptionBudget")]
    for workload in workloads(objects):
        if workload.owner["kind"] != "Deployment":
            continue
        if sum(covers(budget, workload.labels) for budget in budgets) != 1:
            yield f"{workload.name}: not one PodDisruptionBudget for its pods"
        spread = [
            constraint["topologyKey"]
            for constraint in workload.spec.get("topologySpreadConstraints", [])
            if covers(constraint["labelSelector"]["matchLabels"], workload.labels)
        ]
        if "kubernetes.io/hostname" not in spread:
            yield f"{workload.name}: its pods may all lie on one node"
        if workload.owner["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{workload.name}: a rolling update takes a pod away before its successor is ready"


CHECKS: tuple[Check, ...] = (
    schemas,
    labels,
    restricted,
    resources,
    probes,
    grace,
    scaling,
    availability,
    selectors,
    services,
    references,
    network,
    routes,
)


def problems(objects: Objects) -> list[str]:
    """Everything that any check finds."""
    return [f"{check.__name__}: {problem}" for check in CHECKS for problem in check(objects)]
