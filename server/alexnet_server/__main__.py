"""`alexnet-server`, and `python -m alexnet_server`."""

import sys

from alexnet_client import extras


def main() -> int:
    """Run the command; without its packages, say which extra brings them."""
    return extras.run("alexnet-server", "alexnet_server.main", extras="'.[cpu]' (or '.[gpu]', '.[triton]')")


if __name__ == "__main__":
    sys.exit(main())
