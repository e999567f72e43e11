"""Encoded photos to pixels, for Triton's Python backend: the file beside this one is the server's own.

Photos fail one request at a time: Triton may hand several requests over together, and each gets its own
response. A request of several photos with a bad one among them fails as a whole, naming the bad ones, because
a Triton response has room for one error.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from preprocess import PhotoError, prepare


class TritonPythonModel:
    """Input `image` BYTES [N, 1]; output `images` uint8 [N, 256, 256, 3], RGB."""

    def execute(self, requests):
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    @staticmethod
    def _answer(request):
        photos = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        images, faults = [], []
        for row, photo in enumerate(photos):
            try:
                images.append(prepare(photo))
            except PhotoError as error:
                where = f"row {row}: " if len(photos) > 1 else ""
                faults.append(f"{where}{error.code}: {error}")
            except MemoryError:  # not the photo's fault, nor that of the requests beside it
                return _failure("no memory to decode a photo; try again", pb_utils.TritonError.UNAVAILABLE)
        if faults:
            return _failure(" ".join(faults), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", np.stack(images))])


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
