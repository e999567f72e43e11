"""Stands in for Triton's ONNX Runtime backend, where only the Python backend exists (PyPI's Triton for CPUs).

A "Python-based backend": Triton loads it for every model whose config says `backend: "onnxruntime"`, so the
model repository is served as it is. It runs the model's own model.onnx on the CPU, one batch for each call,
and refuses a config that does not fit the graph, as the real backend does.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

if int(np.__version__.split(".")[0]) >= 2:
    raise RuntimeError(f"numpy {np.__version__}: this Triton's Python backend corrupts tensors of numpy 2")

_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(bool)": "TYPE_BOOL",
}


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        # As in alexnet-server: threads that spin between operators would take the cores from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if config["max_batch_size"] == 0:
            raise pb_utils.TritonModelException("this stand-in serves models with a batch dimension alone")
        self._inputs = self._checked(config["input"], self._session.get_inputs())
        self._outputs = self._checked(config["output"], self._session.get_outputs())

    @staticmethod
    def _checked(configured, found):
        """Names of the configured tensors, once each has the type and shape that the graph gives it."""
        graph = {tensor.name: tensor for tensor in found}
        for tensor in configured:
            name, node = tensor["name"], graph.get(tensor["name"])
            if node is None:
                raise pb_utils.TritonModelException(f"the graph has no tensor '{name}', only {sorted(graph)}")
            if _TYPES.get(node.type) != tensor["data_type"]:
                raise pb_utils.TritonModelException(f"'{name}' is {node.type}, not {tensor['data_type']}")
            dims = [-1] + [int(size) for size in tensor["dims"]]
            shape = [size if isinstance(size, int) else -1 for size in node.shape]
            if len(dims) != len(shape) or any(
                -1 not in (a, b) and a != b for a, b in zip(dims, shape, strict=True)
            ):
                raise pb_utils.TritonModelException(f"'{name}' is {shape} in the graph, {dims} in the config")
        return [tensor["name"] for tensor in configured]

    def execute(self, requests):
        """Run all requests' rows as one batch and hand each request its own."""
        columns = {
            name: [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self._inputs
        }
        wanted = [name for name in self._outputs if any(name in r.requested_output_names() for r in requests)]
        try:
            feeds = {name: np.concatenate(rows) for name, rows in columns.items()}
            results = dict(zip(wanted, self._session.run(wanted, feeds), strict=True))
        except Exception as error:
            failure = pb_utils.TritonError(f"onnx runtime error: {error}")
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        lengths = [len(rows) for rows in columns[self._inputs[0]]]
        ends = np.cumsum(lengths)
        return [
            self._answer(request, results, end - length, end)
            for request, length, end in zip(requests, lengths, ends, strict=True)
        ]

    @staticmethod
    def _answer(request, results, start, end):
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(results[name][start:end]))
            for name in request.requested_output_names()
        ]
        return pb_utils.InferenceResponse(tensors)
