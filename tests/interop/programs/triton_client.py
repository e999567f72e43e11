"""tritonclient: triton_client.py http|grpc|http.aio|grpc.aio HOST:PORT PHOTO."""

import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path

import numpy as np

kind, address, path = sys.argv[1:]
module = importlib.import_module(f"tritonclient.{kind}")


async def settled(value):
    return await value if inspect.isawaitable(value) else value


async def main():
    client = module.InferenceServerClient(address)
    photo = module.InferInput("image", [1, 1], "BYTES")
    photo.set_data_from_numpy(np.array([[Path(path).read_bytes()]], dtype=object))
    wanted = module.InferRequestedOutput("probabilities", class_count=1)
    best = (await settled(client.infer("classify", [photo], outputs=[wanted]))).as_numpy("probabilities")
    images = module.InferInput("images", [2, 256, 256, 3], "UINT8")
    images.set_data_from_numpy(np.stack([np.full((256, 256, 3), value, np.uint8) for value in (3, 5)]))
    rows = (await settled(client.infer("alexnet", [images]))).as_numpy("probabilities")
    ready = await settled(client.is_model_ready("alexnet_10crop"))
    await settled(client.close())
    best = best.ravel()[0].decode()
    sys.stdout.write(json.dumps({"best": best, "rows": rows.argmax(1).tolist(), "ready": ready}) + "\n")


asyncio.run(main())
