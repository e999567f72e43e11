"""The gRPC API: `alexnet.v1.Classifier`, the Open Inference Protocol, health and reflection."""

from alexnet_server.rpc.door import GrpcDoor

__all__ = ["GrpcDoor"]
