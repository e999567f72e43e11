"""Images to network to ONNX: the training."""

import alexnet_server  # noqa: F401 - before any import of ONNX Runtime, so that it reports nothing
