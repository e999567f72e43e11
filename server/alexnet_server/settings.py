"""Every setting of the server: one frozen class; each field is a flag and an `ALEXNET_...` variable."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict, SettingsError
from typing_extensions import TypeAliasType

from alexnet_server.errors import StartError, did_you_mean

log = logging.getLogger(__name__)

PREFIX = "ALEXNET_"
# Kubernetes sets these for every Service whose name begins with "alexnet"; the client reads its own.
_FOREIGN_VARIABLES = re.compile(
    r"ALEXNET_(\w*SERVICE_(HOST|PORT\w*)|\w*PORT(_\d+\w*)?|CLIENT_\w+|URL|API_KEY)"
)

_NEAR = 0.75
"""Names at least this similar are near: one is taken for a misspelling of the other."""


def _device(word: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", word):
        raise ValueError("give auto, cpu, cuda, or cuda:N for card N")
    return word


# `--help` shows a value by the name of its type, which shows its unit.
Address = TypeAliasType("Address", str)
Port = TypeAliasType("Port", Annotated[int, Field(ge=0, le=65535)])
Threads = TypeAliasType("Threads", Annotated[int, Field(ge=0, le=1024)])
WorkerCount = TypeAliasType("WorkerCount", Annotated[int, Field(ge=1, le=256)])
Views = TypeAliasType("Views", Annotated[int, Field(ge=1, le=1_000_000)])
Seconds = TypeAliasType("Seconds", Annotated[float, Field(gt=0, le=86_400)])
SecondsOrZero = TypeAliasType("SecondsOrZero", Annotated[float, Field(ge=0, le=3600)])
Connections = TypeAliasType("Connections", Annotated[int, Field(ge=1, le=1_000_000)])
Bytes = TypeAliasType("Bytes", Annotated[int, Field(ge=1)])
Pixels = TypeAliasType("Pixels", Annotated[int, Field(ge=1, le=10**9)])
File = TypeAliasType("File", Path)
Folder = TypeAliasType("Folder", Path)
Keys = TypeAliasType("Keys", SecretStr)
Origins = TypeAliasType("Origins", tuple[str, ...])
Weights = TypeAliasType("Weights", str)
Device = TypeAliasType("Device", Annotated[str, AfterValidator(_device)])


class Settings(BaseSettings):
    """Classify photos over HTTP and gRPC.

    Each flag can also be set by the environment variable named beside it; the
    flag wins. There are other commands:

    alexnet-server unpack [DIR]   write the shipped model repository
    alexnet-server weights        list the public weights
    alexnet-server --version
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_ignore_empty=True,
        cli_prog_name="alexnet-server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_parse_none_str="none",
        cli_show_env_vars=True,
    )

    host: Address = Field(
        "127.0.0.1", min_length=1, description="Address to listen on, HTTP and gRPC; 0.0.0.0 for all."
    )
    http_port: Port = Field(8080, description="HTTP port; 0 picks a free one.")
    grpc_port: Port = Field(8081, description="gRPC port; 0 picks a free one.")

    model_repository: Folder | None = Field(
        None, description="Folder of models in Triton's layout; the shipped AlexNet when not given."
    )
    weights: Weights | None = Field(
        None,
        description="Public weights to serve instead, fetched at the first start: imagenet, or a name from "
        "the list that alexnet-server weights prints.",
    )
    weights_cache: Folder | None = Field(
        None, description="Where public weights are kept; the user's cache when not given."
    )
    calibrate: Folder | None = Field(
        None,
        description="Folder of at least 300 photos like those to be classified; public weights are then "
        "served in int8.",
    )
    weights_views: Literal["center", "all"] = Field(
        "center", description="Views of public weights; all adds the ten crops and the dense view."
    )

    precision: Literal["auto", "int8", "fp16", "fp32"] = Field(
        "auto",
        description="Precision in which the shipped model is unpacked; auto is int8 on a CPU, fp16 on a GPU.",
    )
    device: Device = Field(
        "auto",
        description="Where the network runs: auto, cpu, cuda, or cuda:1 for the second card. Both of "
        "these fail where CUDA does not load.",
    )
    engine: Literal["auto", "openvino", "onnx", "triton"] = Field(
        "auto",
        description="What runs the network; auto is onnx where CUDA loads, else openvino where it is "
        "installed, else onnx. triton asks a Triton server.",
    )
    triton_url: Address = Field("localhost:8001", description="host:port of Triton's gRPC endpoint.")
    engine_threads: Threads = Field(
        0, description="Threads that run the network; 0 means one per usable core."
    )
    decode_threads: Threads = Field(0, description="Threads that decode photos; 0 means one per usable core.")

    workers: WorkerCount = Field(
        1,
        description="Server processes behind one address; they share out cores, queue and decoding memory.",
    )
    queue_size: Views = Field(
        512,
        description="Views that may wait; a ten-view photo counts as ten. Any more are refused (429).",
    )
    request_timeout_s: Seconds = Field(
        30.0, description="Longest time that a request may take; clients may ask for less."
    )
    engine_timeout_s: Seconds = Field(
        30.0, description="A batch that runs longer than this makes the server not ready."
    )
    drain_delay_s: SecondsOrZero = Field(
        5.0,
        description="How long to keep serving after SIGTERM, while balancers notice that it is not ready.",
    )
    shutdown_timeout_s: Seconds = Field(
        30.0, description="Longest wait for requests in flight after the ports are closed."
    )

    max_connections: Connections = Field(
        4096,
        description="Connections that may be open at a time, for each protocol; the process's limit on "
        "open files may allow fewer.",
    )
    max_photo_bytes: Bytes = Field(10 * 2**20, le=2**30, description="Largest photo, as sent.")
    max_body_bytes: Bytes = Field(
        64 * 2**20, le=2**31, description="Largest request body, after decompression."
    )
    max_pixels: Pixels = Field(50_000_000, description="Most pixels that a photo's header may announce.")

    decode_memory_bytes: Bytes = Field(
        512 * 2**20,
        le=2**40,
        description="Memory that large photos may take together while they are decoded; the rest wait.",
    )

    cors_origins: Annotated[Origins, NoDecode] = Field(
        (), description="Origins whose pages may call the HTTP API, separated by commas."
    )
    tls_cert_file: File | None = Field(None, description="PEM certificate chain; both ports then speak TLS.")
    tls_key_file: File | None = Field(None, description="PEM key of the certificate.")
    api_keys_file: File | None = Field(None, description="File of accepted API keys, one per line.")
    api_keys: Keys | None = Field(None, description="Accepted API keys, separated by commas.")
    metrics_key: bool = Field(False, description="Require an API key for /metrics too.")
    grpc_max_connection_age_s: Seconds = Field(
        300.0,
        description="gRPC clients must reconnect after this time, so that load spreads to new servers.",
    )
    grpc_compression: bool = Field(
        False,
        description="Accept compressed gRPC messages. Each may grow to max-body-bytes before its size "
        "counts, so do this only if you trust your clients.",
    )
    grpc_keepalive_s: Seconds = Field(30.0, description="A gRPC connection idle for this long is pinged.")
    http_keepalive_s: Seconds = Field(75.0, description="An HTTP connection idle for this long is closed.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["plain", "json"] = Field("plain", description="json writes one object per line.")
    access_log: bool = Field(False, description="Log a line for every request, not only for failures.")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Accept `a,b` as well as a sequence."""
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, Sequence):
            words = [word for part in parts for word in str(part).replace(" ", "").split(",")]
            return tuple(_origin(word) for word in words if word)
        return value

    @field_validator("http_port", "grpc_port", mode="before")
    @classmethod
    def _pass_over_service_links(cls, value: object, info: ValidationInfo) -> object:
        """Kubernetes sets ALEXNET_GRPC_PORT=tcp://10.0.0.1:80 for a Service that is called alexnet-grpc."""
        if isinstance(value, str) and re.match(r"(tcp|udp|sctp)://", value):
            name = PREFIX + str(info.field_name).upper()
            log.warning("%s=%s is a Kubernetes service link, not a setting; it is ignored", name, value)
            return cls.model_fields[str(info.field_name)].default
        return value

    @field_validator("triton_url")
    @classmethod
    def _check_address(cls, value: str) -> str:
        # gRPC would look for a host called "http" for as long as the process lives.
        if re.match(r"(https?|grpcs?|tcp)://", value) or not re.search(r":\d{1,5}$|^unix:", value):
            raise ValueError("it must be host:port, such as triton:8001, without a scheme")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("--tls-cert-file and --tls-key-file must be given together")
        if self.metrics_key and self.api_keys is None and self.api_keys_file is None:
            raise ValueError("--metrics-key needs --api-keys or --api-keys-file")
        if self.http_port == self.grpc_port != 0:
            raise ValueError(f"--http-port and --grpc-port are both {self.http_port}; they must differ")
        if self.engine == "openvino" and self.device.startswith("cuda"):
            raise ValueError("--engine openvino computes on the CPU; --device cuda needs --engine onnx")
        if self.weights and self.engine == "triton":
            raise ValueError("--weights are served by this process; for Triton use alexnet-train import")
        if self.max_photo_bytes > self.max_body_bytes:
            raise ValueError("--max-photo-bytes is larger than --max-body-bytes")
        return self


def load_settings(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags, then `ALEXNET_...` variables, then defaults.

    Args:
        arguments: Command line without the program's name.
        environ: Searched for misspelt variables; values are read from the process's environment.

    Raises:
        StartError: An unknown flag or variable, or a value out of range; one line naming it.
        SystemExit: After printing `--help`.
    """
    known = list(Settings.model_fields)
    for name, value in environ.items():
        # Other empty variables count as absent; an empty list of keys must not quietly open the server.
        if not value and name.upper() in (PREFIX + "API_KEYS", PREFIX + "API_KEYS_FILE"):
            raise StartError(f"{name} is empty: it holds no API key; give one, or leave the setting out")
    try:
        settings = CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        raise StartError("; ".join(_in_words(item) for item in error.errors())) from None
    except SettingsError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        unknown = re.search(r"--[\w-]+", reason) if reason.startswith("unrecognized arguments") else None
        near = _near(unknown[0], ["--" + name.replace("_", "-") for name in known]) if unknown else ""
        raise StartError(f"{reason}{near} (see alexnet-server --help)") from None
    for name in environ:
        word = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or _FOREIGN_VARIABLES.fullmatch(name) or word.lower() in known:
            continue
        if near := did_you_mean(word.lower(), known, cutoff=_NEAR):
            meant = PREFIX + near.upper()
            raise StartError(f"unknown setting {name} in the environment; did you mean {meant}?")
        log.warning("%s in the environment is not a setting of this server", name)
    return settings


def _origin(word: str) -> str:
    """An origin as browsers write it: in lower case, without a trailing slash."""
    return word.lower().rstrip("/")


def _near(word: str, known: Sequence[str]) -> str:
    """`; did you mean --queue-size?` where a known word is near; else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _in_words(item: Mapping[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = str(item["loc"][0])
    flag = name.replace("_", "-")
    # The value is worth showing, except where it may be a secret.
    got = "" if "key" in name else f", got {str(item.get('input'))[:60]!r}"
    return f"--{flag} ({PREFIX}{name.upper()}): {message[:1].lower()}{message[1:]}{got}"
