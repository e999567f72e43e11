"""`python -m alexnet_server` is `alexnet-server`."""

import sys

from alexnet_server.main import main

sys.exit(main())
