"""The public weights that are known by name: where they lie, their checksums, what was published of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["torchvision", "caffe", "onnx"]
SUFFIXES: dict[str, Format] = {
    ".pth": "torchvision",
    ".pt": "torchvision",
    ".pth.tar": "torchvision",
    ".ckpt": "torchvision",
    ".caffemodel": "caffe",
    ".onnx": "onnx",
}


@dataclass(frozen=True)
class Source:
    """Published weights. ``top1`` and ``top5`` are shares of the 50,000 validation images of ILSVRC-2012."""

    name: str
    format: Format
    file: str
    urls: tuple[str, ...]
    """Where it lies, the publisher's own place first."""
    digest: str
    """``sha256:...`` or ``sha1:...``, whichever its publisher gives."""
    variant: str
    title: str
    licence: str
    top1: float
    top5: float
    note: str = ""
    classes: int = 1000
    megabytes: int = 244


TERMS = "Trained on ImageNet, whose terms of use ask for non-commercial research and education."
"""What goes with every licence below."""
_BVLC = "Released by the Berkeley Vision and Learning Center for unrestricted use."
_ZOO = "https://github.com/onnx/models/raw/main/validated/vision/classification"
# Where the former redirects to.
_ZOO_LFS = "https://media.githubusercontent.com/media/onnx/models/main/validated/vision/classification"
_ZOO_NOTE = "Measured on photos squeezed to 224 x 224, which is not how this server prepares them."

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "torchvision",
            "torchvision",
            "alexnet-owt-7be5be79.pth",
            ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
            "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            "owt",
            "torchvision's AlexNet (One weird trick)",
            "BSD-3-Clause (torchvision).",
            0.56522,
            0.79066,
        ),
        Source(
            "bvlc_alexnet",
            "caffe",
            "bvlc_alexnet.caffemodel",
            ("http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",),
            "sha1:9116a64c0fbe4459d18f4bb6b56d647b63920377",
            "caffe",
            "BVLC AlexNet (Caffe)",
            _BVLC,
            0.571,
            0.802,
        ),
        Source(
            "bvlc_reference_caffenet",
            "caffe",
            "bvlc_reference_caffenet.caffemodel",
            ("http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",),
            "sha1:4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
            "caffenet",
            "BVLC CaffeNet (Caffe)",
            _BVLC,
            0.574,
            0.804,
        ),
        Source(
            "bvlcalexnet-12",
            "onnx",
            "bvlcalexnet-12.onnx",
            (f"{_ZOO}/alexnet/model/bvlcalexnet-12.onnx", f"{_ZOO_LFS}/alexnet/model/bvlcalexnet-12.onnx"),
            "sha256:6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
            "caffe",
            "BVLC AlexNet (ONNX model zoo)",
            "BSD-3-Clause (ONNX model zoo).",
            0.5480,
            0.7823,
            _ZOO_NOTE,
        ),
        Source(
            "caffenet-12",
            "onnx",
            "caffenet-12.onnx",
            (f"{_ZOO}/caffenet/model/caffenet-12.onnx", f"{_ZOO_LFS}/caffenet/model/caffenet-12.onnx"),
            "sha256:ea563e5c47d1f58e1717cf1a2d8bf288b8adc07af0ad228b622096cd243aeecb",
            "caffenet",
            "BVLC CaffeNet (ONNX model zoo)",
            "BSD-3-Clause (ONNX model zoo).",
            0.5627,
            0.7952,
            _ZOO_NOTE,
        ),
    )
}


RECOMMENDED = "torchvision"
"""What ``imagenet`` stands for: published over https, with a sha256, and measured on photos cut like ours."""


def source_named(name: str) -> Source | None:
    """The source of that name, or the recommended one for ``imagenet``."""
    return SOURCES.get(RECOMMENDED if name == "imagenet" else name)


def named_like(file: str) -> Source | None:
    """The source whose published file has that name."""
    return next((source for source in SOURCES.values() if source.file == file), None)
