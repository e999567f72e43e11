"""config.pbtxt of a serving graph, for Triton and for our own server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alexnet_server.models.export.graph import PHOTO, View

Target = Literal["gpu", "cpu", "tensorrt"]
MAX_BATCH: Mapping[View, int] = {"center": 32, "ten": 8, "dense": 32}
"""Photos. Ten crops of eight are 80 views, whose conv1 alone makes 93 MB of float32."""
QUEUE_TIMEOUT_US = 5_000_000
_INSTANCE: Mapping[Target, str] = {
    "gpu": "instance_group [ { count: 1 kind: KIND_GPU } ]",
    # One instance with all cores beats several with a few: the weights pass through the cache once a batch.
    "cpu": "instance_group [ { count: 1 kind: KIND_CPU } ]",
    "tensorrt": """instance_group [ { count: 1 kind: KIND_GPU } ]
optimization {
  execution_accelerators {
    gpu_execution_accelerator [
      {
        name: "tensorrt"
        parameters { key: "precision_mode" value: "FP16" }
        parameters { key: "max_workspace_size_bytes" value: "1073741824" }
        parameters { key: "trt_engine_cache_enable" value: "true" }
      }
    ]
  }
}""",
}


@dataclass(frozen=True)
class Served:
    """What a config says of a model."""

    name: str
    view: View
    classes: int
    features: int
    parameters: Mapping[str, str]


def config_text(model: Served, target: Target = "gpu") -> str:
    """The text of a config.pbtxt.

    ``gpu`` is the default; ``cpu`` and ``tensorrt`` are written to ``configs/`` and chosen with Triton's
    ``--model-config-name``. TensorRT builds its engines at load, minutes for each shape, and is for fp32 and
    fp16.
    """
    batch = MAX_BATCH[model.view]
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
        for key, value in model.parameters.items()
    )
    warm_up = "\n".join(_WARM_UP.format(size=size, side=PHOTO) for size in (1, batch))
    return _TEXT.format(
        model=model,
        batch=batch,
        side=PHOTO,
        # As many as three full batches may wait; beyond that an answer would come too late to be wanted.
        queue=3 * batch,
        timeout=QUEUE_TIMEOUT_US,
        instance=_INSTANCE[target],
        parameters=parameters,
        warm_up=warm_up,
    )


_WARM_UP = """model_warmup {{
  name: "{size} photos"
  batch_size: {size}
  inputs {{ key: "images" value: {{ data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] zero_data: true }} }}
}}"""

_TEXT = """# Written by alexnet-train. max_batch_size is read from here by Triton and by alexnet-server.
name: "{model.name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "images" data_type: TYPE_UINT8 format: FORMAT_NHWC dims: [ {side}, {side}, 3 ] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {model.classes} ] label_filename: "labels.txt" }},
  {{ name: "features" data_type: TYPE_FP32 dims: [ {model.features} ] }}
]
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    allow_timeout_override: true
    max_queue_size: {queue}
  }}
}}
{instance}
{warm_up}
{parameters}
"""
