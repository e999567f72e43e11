"""Photo to labels: the server."""

import os
import sys

# Nothing that we start reports to anybody. ONNX Runtime sends usage to its maker unless this is set before
# its import. OpenVINO does so while it is imported, through a package of its own and its model converter
# (which costs an eighth of a second besides, and nothing here needs it): neither can be imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
for _name in ("openvino_telemetry", "openvino.tools.ovc"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
