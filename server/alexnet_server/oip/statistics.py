"""Triton's model statistics, read from the server's own metrics: nothing is counted twice."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from alexnet_server.oip.models import Served


def of_model(registry: CollectorRegistry, served: Served) -> dict[str, Any]:
    """One element of `model_stats`; durations are sums over photos in nanoseconds.

    `classify` shares the engine's model, and so its numbers.
    """
    name = served.model.name
    photos = _count(registry, "alexnet_stage_seconds_count", model=name, stage="engine")
    return {
        "name": served.name,
        "version": served.model.version,
        "inference_count": _count(registry, "alexnet_batch_size_sum", model=name) or photos,
        "execution_count": _count(registry, "alexnet_batch_size_count", model=name) or photos,
        "inference_stats": {
            **_requests(registry, name),
            "queue": _stage(registry, name, "queue"),
            "compute_input": _stage(registry, name, "decode"),
            "compute_infer": _stage(registry, name, "engine"),
            "compute_output": {"count": photos, "ns": 0},
            "cache_hit": {"count": 0, "ns": 0},  # there is no cache
            "cache_miss": {"count": 0, "ns": 0},
        },
    }


def _requests(registry: CollectorRegistry, model: str) -> dict[str, dict[str, int]]:
    """Requests over both protocols; the time of failures is not kept apart, so successes get it all."""
    success = failure = 0
    ns = 0
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.labels.get("model") != model:
                continue
            if sample.name == "alexnet_requests_total":
                if sample.labels["code"] == "ok":
                    success += int(sample.value)
                else:
                    failure += int(sample.value)
            elif sample.name == "alexnet_request_seconds_sum":
                ns += int(sample.value * 1e9)
    return {"success": {"count": success, "ns": ns}, "fail": {"count": failure, "ns": 0}}


def _stage(registry: CollectorRegistry, model: str, stage: str) -> dict[str, int]:
    seconds = registry.get_sample_value("alexnet_stage_seconds_sum", {"model": model, "stage": stage}) or 0.0
    count = _count(registry, "alexnet_stage_seconds_count", model=model, stage=stage)
    return {"count": count, "ns": int(seconds * 1e9)}


def _count(registry: CollectorRegistry, name: str, **labels: str) -> int:
    return int(registry.get_sample_value(name, labels) or 0)
