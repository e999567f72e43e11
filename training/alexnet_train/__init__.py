"""Images to network to ONNX: the training."""
