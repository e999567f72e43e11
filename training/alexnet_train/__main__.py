"""`alexnet-train`, and `python -m alexnet_train`, the form torchrun starts."""

import sys

from alexnet_client import extras


def main() -> int:
    """Run the command; without its packages, say which extra brings them."""
    return extras.run("alexnet-train", "alexnet_train.cli", extras="'.[train]'")


if __name__ == "__main__":
    sys.exit(main())
