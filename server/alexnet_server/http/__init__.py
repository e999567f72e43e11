"""The HTTP API: photos, the page and the Open Inference Protocol's REST form."""
