"""What a user puts together in an evening: Mosec, two decoding processes and one with OpenVINO on our graph.

    python -m bench.mosec_peer --port 8000 --wait 10      # POST /inference, the photo as the body

Mosec is in the group `bench` of pyproject.toml.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mosec import Server, ValidationError, Worker

from alexnet_server.machine import usable_cores
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import default_repository, ensure_unpacked
from alexnet_server.preprocess import PhotoError, prepare

BATCH = 32


class Decode(Worker):
    """Photo to pixels."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Any:
        try:
            return prepare(data)
        except PhotoError as error:
            raise ValidationError(str(error)) from None


class Classify(Worker):
    """Pixels to the five best labels."""

    def __init__(self) -> None:
        import openvino

        entry = read_repository(default_repository())
        self._labels = [words for _, words in entry.models["alexnet"].labels]
        path = ensure_unpacked(entry, ("int8",))["alexnet"]
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": usable_cores()}
        self._request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def forward(self, data: list[Any]) -> list[Any]:
        self._request.infer([np.stack(data)], share_inputs=True)
        rows = self._request.get_tensor("probabilities").data
        best = np.argsort(-rows, axis=1)[:, :5]
        return [
            {"predictions": [{"label": self._labels[i], "score": float(row[i])} for i in indices]}
            for row, indices in zip(rows, best, strict=True)
        ]


def main() -> None:
    os.environ.setdefault("MOSEC_LOG_LEVEL", "error")
    server = Server()
    server.append_worker(Decode, num=usable_cores())
    server.append_worker(Classify, max_batch_size=BATCH)
    server.run()


if __name__ == "__main__":
    main()
