"""``python -m alexnet_train``, the form torchrun starts."""

import sys

from alexnet_train.cli import main

sys.exit(main())
