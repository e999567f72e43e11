"""Rendered objects, and the pods that they will become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Objects = list[Object]


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
                Workload(
                    f"InferenceService {name}", {"serving.kserve.io/inferenceservice": name}, pod, service
                )
            )
    return found


_KSERVE_FIELDS = ("model", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")


def is_server(container: Object) -> bool:
    """True for a container that runs `alexnet-server`."""
    names = [item["name"] for item in container.get("env", [])]
    return container["name"] == "server" or any(name.startswith("ALEXNET_") for name in names)


def settings_of(objects: Objects, container: Object) -> dict[str, str]:
    """A container's environment, literal values and config maps joined."""
    maps = {item["metadata"]["name"]: item.get("data", {}) for item in of_kind(objects, "ConfigMap")}
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= maps.get(source["configMapRef"]["name"], {})
    return values | {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}


def covers(selector: Object, labels: dict[str, str]) -> bool:
    """True when `matchLabels` (or a service's plain selector) holds for `labels`."""
    return selector.items() <= labels.items()
