import numpy as np
import onnxruntime
import pytest


@pytest.fixture(scope="session")
def photos():
    """Three (256, 256, 3) uint8 photos with structure at every scale, so that shifted or mirrored crops
    differ."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (3, 16, 16, 3)).repeat(16, 1).repeat(16, 2)
    fine = rng.integers(-60, 61, (3, 256, 256, 3))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def run_onnx():
    """Run a model (ModelProto) on images; returns the outputs asked for, all of them by default."""

    def run(model, images, outputs=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(outputs, {"images": images})

    return run
