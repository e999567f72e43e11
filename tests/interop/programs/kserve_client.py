"""KServe's SDK: kserve_client.py rest|grpc ADDRESS."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig

kind, address = sys.argv[1:]


def request():
    images = InferInput("images", [2, 256, 256, 3], "UINT8")
    images.set_data_from_numpy(
        np.stack([np.full((256, 256, 3), value, np.uint8) for value in (3, 5)]), binary_data=True
    )
    return InferRequest(model_name="alexnet", infer_inputs=[images])


async def main():
    if kind == "rest":
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        ready = await client.is_server_ready(address) and await client.is_model_ready(address, "alexnet")
        answer = await client.infer(address, request(), model_name="alexnet")
    else:
        client = InferenceGRPCClient(address)
        ready = await client.is_server_ready() and await client.is_model_ready("alexnet")
        answer = await client.infer(request())
    await client.close()
    (probabilities,) = [each for each in answer.outputs if each.name == "probabilities"]
    rows = probabilities.as_numpy().argmax(1).tolist()
    sys.stdout.write(json.dumps({"rows": rows, "ready": ready}) + "\n")


asyncio.run(main())
