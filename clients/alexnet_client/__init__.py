"""Client library for the AlexNet server: a photo goes in, labels come out.

::

    from alexnet_client import Client

    with Client("localhost:8081") as client:
        print(client.classify("cat.jpg").top.label)
"""

from alexnet_client._call import Views
from alexnet_client._many import Outcome
from alexnet_client._progress import Progress
from alexnet_client.aio import AsyncClient
from alexnet_client.client import Client
from alexnet_client.errors import (
    AlexNetError,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ServerError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownModel,
    Unreadable,
)
from alexnet_client.http import HttpClient
from alexnet_client.photos import Photo
from alexnet_client.results import Classification, Features, Health, Label, Model, Prediction

__all__ = [
    "AlexNetError",
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "Features",
    "Health",
    "HttpClient",
    "InvalidImage",
    "InvalidRequest",
    "Label",
    "Model",
    "Outcome",
    "Overloaded",
    "Photo",
    "Prediction",
    "Progress",
    "ServerError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnknownModel",
    "Unreadable",
    "Views",
]
