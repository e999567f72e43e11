"""README's and the model card's picture of what the shipped model's first layer has learned.

python -m tests.project.kernels docs/kernels.png
"""

import sys
from pathlib import Path

from alexnet_server.models.anatomy import kernels_picture
from alexnet_server.models.unpack import default_repository
from alexnet_server.models.weights import read_weights


def drawn() -> bytes:
    """The kernels of conv1 as PNG, as the page shows them."""
    weights = read_weights(default_repository() / "alexnet.weights", only="conv1.weight")
    return kernels_picture(weights["conv1.weight"])


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(drawn())
