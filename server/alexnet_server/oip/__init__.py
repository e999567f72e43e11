"""The Open Inference Protocol v2, with Triton's binary-tensor, classification and statistics extensions.

`tensors` turns its encodings into arrays and back, `models` and `statistics` describe what is served,
`inference` runs a request. `rest` with `rest_wire`, and `rpc`, are the two doors' translations: they
alone know a wire format.
"""
