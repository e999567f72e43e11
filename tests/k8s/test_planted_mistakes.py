"""The checks can fail: each mistake, planted in a sound overlay, is found by the check meant for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.checks import problems
from tests.k8s.conftest import Render
from tests.k8s.manifests import Object, Objects, of_kind

Plant = Callable[[Objects], None]


def the(objects: Objects, kind: str, name: str) -> Object:
    (found,) = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


def pod(objects: Objects, kind: str = "Deployment", name: str = "alexnet") -> Object:
    spec: Object = the(objects, kind, name)["spec"]["template"]["spec"]
    return spec


def server(objects: Objects) -> Object:
    container: Object = pod(objects)["containers"][0]
    return container


def put(item: Any, path: str, value: Any) -> None:
    """Set `a.b.0.c` of an object; None removes it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        item = item[part]
    if value is None:
        del item[last]
    else:
        item[last] = value


def on(kind: str, name: str, path: str, value: Any) -> Plant:
    return lambda objects: put(the(objects, kind, name), path, value)


def on_server(path: str, value: Any) -> Plant:
    return lambda objects: put(server(objects), path, value)


def setting(name: str, value: str) -> Plant:
    def plant(objects: Objects) -> None:
        for item in of_kind(objects, "ConfigMap"):
            if item["metadata"]["name"].startswith("alexnet-settings"):
                item["data"][name] = value

    return plant


def writable_init_container(objects: Objects) -> None:
    pod(objects, "Job", "alexnet-training")["initContainers"][0]["securityContext"][
        "readOnlyRootFilesystem"
    ] = False


def second_scaler(objects: Objects) -> None:
    hpa = copy.deepcopy(the(objects, "HorizontalPodAutoscaler", "alexnet"))
    objects.append(hpa | {"metadata": {"name": "again", "namespace": "alexnet"}})


def keda_beside_hpa(objects: Objects) -> None:
    objects.append(
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "alexnet", "namespace": "alexnet"},
            "spec": {
                "scaleTargetRef": {"name": "alexnet"},
                "minReplicaCount": 2,
                "maxReplicaCount": 4,
                "triggers": [
                    {
                        "type": "prometheus",
                        "metadata": {"serverAddress": "http://p:9090", "query": "sum(x)", "threshold": "1"},
                    }
                ],
            },
        }
    )


def without_default_deny(objects: Objects) -> None:
    objects.remove(the(objects, "NetworkPolicy", "default-deny"))


CPU = "overlays/cpu"
TRITON = "overlays/triton"

MISTAKES: dict[str, tuple[str, tuple[str, ...], Plant, str]] = {
    "a misspelt field": (CPU, (), on_server("readynessProbe", {}), "schemas"),
    "an API that was removed": (
        CPU,
        (),
        on("HorizontalPodAutoscaler", "alexnet", "apiVersion", "autoscaling/v2beta2"),
        "schemas",
    ),
    "a misspelt field of KEDA": (
        "overlays/gpu",
        (),
        on("ScaledObject", "alexnet", "spec.minReplicas", 2),
        "schemas",
    ),
    "a number where KEDA wants a string": (
        "overlays/gpu",
        (),
        on("ScaledObject", "alexnet", "spec.triggers.0.metadata.threshold", 64),
        "schemas",
    ),
    "a misspelt field of KServe": (
        "overlays/kserve",
        (),
        on("InferenceService", "alexnet", "spec.predictor.model.storageURI", "pvc://x"),
        "schemas",
    ),
    "a misspelt field in KServe's container": (
        "overlays/kserve",
        (),
        on("ServingRuntime", "alexnet", "spec.containers.0.imagePolicy", "Always"),
        "schemas",
    ),
    "an unknown kind": (CPU, (), on("Service", "alexnet", "kind", "Servise"), "schemas"),
    "root": (CPU, (), lambda o: put(pod(o), "securityContext.runAsNonRoot", False), "restricted"),
    "user 0": (CPU, (), lambda o: put(pod(o), "securityContext.runAsUser", 0), "restricted"),
    "a writable root": (CPU, (), on_server("securityContext.readOnlyRootFilesystem", None), "restricted"),
    "a writable root in an init container": ("training", (), writable_init_container, "restricted"),
    "a writable root under KServe": (
        "overlays/kserve",
        (),
        on("ServingRuntime", "alexnet", "spec.containers.0.securityContext.readOnlyRootFilesystem", False),
        "restricted",
    ),
    "capabilities kept": (
        CPU,
        (),
        on_server("securityContext.capabilities", {"drop": ["NET_RAW"]}),
        "restricted",
    ),
    "a token": (CPU, (), lambda o: put(pod(o), "automountServiceAccountToken", True), "restricted"),
    "a lax namespace": (
        CPU,
        (),
        on("Namespace", "alexnet", "metadata.labels", {"pod-security.kubernetes.io/enforce": "baseline"}),
        "restricted",
    ),
    "no /tmp": (CPU, (), on_server("volumeMounts", []), "restricted"),
    "no memory limit": (CPU, (), on_server("resources.limits.memory", None), "resources"),
    "threads written down": (
        CPU,
        (),
        on_server("env", [{"name": "ALEXNET_ENGINE_THREADS", "value": "2"}]),
        "resources",
    ),
    "readiness that asks for life": (CPU, (), on_server("readinessProbe.httpGet.path", "/livez"), "probes"),
    "liveness that asks the engine": (CPU, (), on_server("livenessProbe.httpGet.path", "/readyz"), "probes"),
    "a probe of the gRPC port": (CPU, (), on_server("livenessProbe.httpGet.port", "grpc"), "probes"),
    "no startup probe": (TRITON, (), on_server("startupProbe", None), "probes"),
    "a longer drain": (CPU, (), setting("ALEXNET_DRAIN_DELAY_S", "40"), "grace"),
    "a shorter grace": (CPU, (), lambda o: put(pod(o), "terminationGracePeriodSeconds", 45), "grace"),
    "no preStop": (
        TRITON,
        (),
        on("Deployment", "alexnet-triton", "spec.template.spec.containers.0.lifecycle", None),
        "grace",
    ),
    "no budget": (
        TRITON,
        (),
        on("PodDisruptionBudget", "alexnet-triton", "spec.selector.matchLabels", {"app": "x"}),
        "availability",
    ),
    "all on one node": (
        CPU,
        (),
        lambda o: put(pod(o), "topologySpreadConstraints.0.topologyKey", "kubernetes.io/os"),
        "availability",
    ),
    "spread by somebody else's labels": (
        TRITON,
        (),
        lambda o: put(
            pod(o, name="alexnet-triton"),
            "topologySpreadConstraints.0.labelSelector.matchLabels",
            {"app.kubernetes.io/name": "triton"},
        ),
        "availability",
    ),
    "a rollout with a gap": (
        CPU,
        (),
        on("Deployment", "alexnet", "spec.strategy.rollingUpdate.maxUnavailable", 1),
        "availability",
    ),
    "a server that may talk to the Internet": (
        CPU,
        ("import",),
        on(
            "NetworkPolicy",
            "alexnet-import-to-internet",
            "spec.podSelector.matchLabels",
            {"app.kubernetes.io/name": "alexnet", "app.kubernetes.io/component": "server"},
        ),
        "network",
    ),
    "two autoscalers": (CPU, (), second_scaler, "scaling"),
    "KEDA beside an HPA": (CPU, (), keda_beside_hpa, "scaling"),
    "replicas beside an autoscaler": (CPU, (), on("Deployment", "alexnet", "spec.replicas", 3), "scaling"),
    "an autoscaler for nobody": (
        CPU,
        (),
        on("HorizontalPodAutoscaler", "alexnet", "spec.scaleTargetRef.name", "alexnets"),
        "scaling",
    ),
    "a single replica": (CPU, (), on("HorizontalPodAutoscaler", "alexnet", "spec.minReplicas", 1), "scaling"),
    "a service of nobody": (
        CPU,
        (),
        on("Service", "alexnet", "spec.selector", {"app.kubernetes.io/name": "alexnett"}),
        "services",
    ),
    "a selector that takes Triton's pods too": (
        TRITON,
        (),
        on("Service", "alexnet", "spec.selector", {"app.kubernetes.io/name": "alexnet"}),
        "services",
    ),
    "a deployment that does not know its pods": (
        CPU,
        (),
        on("Deployment", "alexnet", "spec.template.metadata.labels", {"app.kubernetes.io/name": "alexnet"}),
        "selectors",
    ),
    "a budget for nobody": (
        CPU,
        (),
        on("PodDisruptionBudget", "alexnet", "spec.selector.matchLabels", {"app": "x"}),
        "selectors",
    ),
    "a monitor of a port that is not there": (
        "overlays/gpu",
        (),
        on("ServiceMonitor", "alexnet", "spec.endpoints.0.port", "metrics"),
        "services",
    ),
    "settings that are not there": (
        CPU,
        (),
        on_server("envFrom.0.configMapRef.name", "alexnet-setings"),
        "references",
    ),
    "a label left out": (
        CPU,
        ("monitoring",),
        on("ServiceMonitor", "alexnet", "metadata.labels", {"app.kubernetes.io/name": "alexnet"}),
        "labels",
    ),
    "a pod of another version": (
        CPU,
        (),
        lambda objects: the(objects, "Deployment", "alexnet")["spec"]["template"]["metadata"]["labels"].pop(
            "app.kubernetes.io/version"
        ),
        "labels",
    ),
    "no default deny": (CPU, (), without_default_deny, "network"),
    "a port nobody listens on": (
        CPU,
        (),
        on("NetworkPolicy", "alexnet-from-clients", "spec.ingress.0.ports", [{"port": 8000}]),
        "network",
    ),
    "a door that nobody may use": (
        CPU,
        (),
        on("NetworkPolicy", "alexnet-from-clients", "spec.ingress.0.ports", [{"port": "http"}]),
        "network",
    ),
    "open to everybody": (
        CPU,
        (),
        on("NetworkPolicy", "alexnet-from-clients", "spec.ingress.0.from", []),
        "network",
    ),
    "a way out to nowhere": (
        TRITON,
        (),
        on("NetworkPolicy", "alexnet-to-triton", "spec.egress.0.ports", [{"port": 8000}, {"port": 9999}]),
        "network",
    ),
    "DNS of pods alone, where the node has a cache": (
        TRITON,
        (),
        lambda objects: the(objects, "NetworkPolicy", "alexnet-to-triton")["spec"]["egress"][1]["to"].pop(),
        "network",
    ),
    "a page without its files": (
        CPU,
        ("gateway-api",),
        lambda objects: the(objects, "HTTPRoute", "alexnet")["spec"]["rules"][0]["matches"].remove(
            {"path": {"type": "PathPrefix", "value": "/page"}}
        ),
        "routes",
    ),
    "metrics routed by prefix": (
        CPU,
        ("gateway-api",),
        on("HTTPRoute", "alexnet", "spec.rules.0.matches.0.path", {"type": "PathPrefix", "value": "/"}),
        "routes",
    ),
    "metrics routed": (
        CPU,
        ("gateway-api",),
        on("HTTPRoute", "alexnet", "spec.rules.0.matches.0.path.value", "/metrics"),
        "routes",
    ),
    "a route to a port that is not there": (
        CPU,
        ("gateway-api",),
        on("GRPCRoute", "alexnet", "spec.rules.0.backendRefs.0.port", 9000),
        "routes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_found(render: Render, mistake: str) -> None:
    overlay, components, plant, check = MISTAKES[mistake]
    objects = copy.deepcopy(render(overlay, *components))
    assert problems(objects) == []
    plant(objects)
    found = problems(objects)
    assert any(problem.startswith(f"{check}: ") for problem in found), found
