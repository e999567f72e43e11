"""The Open Inference Protocol v2, with Triton's binary-tensor, classification and statistics extensions.

`tensors` turns its encodings into arrays and back, `models` and `statistics` describe what is served,
`inference` runs a request. Wire formats belong to the protocols: `http.oip`, `http.oip_wire` and `rpc.oip`.
"""
