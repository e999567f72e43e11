"""Public weights to a complete model repository: fetched, checked, converted, tried, written, unpacked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.files import user_cache
from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.card import Card
from alexnet_server.models.export.graph import VIEWS, Precision, View
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.run import runner
from alexnet_server.models.export.weights import ServingWeights, serving_model
from alexnet_server.models.export.write import Plan, export, packed_weights
from alexnet_server.models.public import caffe, onnx_graph, torchvision
from alexnet_server.models.public.download import Progress, digest_of, fetch, matches, report
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import Network
from alexnet_server.models.public.proof import check_mean, prove
from alexnet_server.models.public.sources import (
    SOURCES,
    SUFFIXES,
    TERMS,
    Format,
    Source,
    named_like,
    source_named,
)
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.photos import PHOTO, golden_image

LABELS = Path(__file__).parent / "imagenet_labels.txt"
"""The 1,000 classes of ILSVRC-2012: WordNet ids and WordNet's words, in order."""
CALIBRATION_PHOTOS = 300


@dataclass(frozen=True)
class Request:
    """What to import, and how.

    Attributes:
        weights: a name of ``sources.SOURCES``, or a file.
        views: the models to write.
        precision: of the complete graphs; int8 needs ``calibrate``.
        calibrate: folder of photos like those that will be served.
        url: where to fetch a name from instead; the checksum stays.
        unverified: take a file whose checksum is another.
        variant: ``caffe`` or ``caffenet``, of a caffemodel that does not tell.
        mean: mean image, ``.binaryproto`` or ``.npy``, instead of the mean pixel.
        labels: classes other than ILSVRC-2012's, a file of lines: WordNet id, tab, words.
        downloads: where fetched files are kept; the user's cache by default.
        least_photos: how many ``calibrate`` must hold.
    """

    weights: str
    views: Sequence[View] = VIEWS
    precision: Precision = "fp32"
    calibrate: Path | None = None
    url: str | None = None
    unverified: bool = False
    variant: Literal["caffe", "caffenet"] | None = None
    mean: Path | None = None
    labels: Path | None = None
    downloads: Path | None = None
    least_photos: int = 1


def import_weights(
    request: Request,
    repository: Path,
    *,
    say: Callable[[str], None],
    progress: Progress = report,
    stop: threading.Event | None = None,
) -> None:
    """Write a model repository of public weights, complete.

    Args:
        request: which weights.
        repository: where to.
        say: told of each step and of the photos' answers, a line at a time.
        progress: told of every piece that arrives.
        stop: once set, fetching ends with a WeightsError.

    Raises:
        WeightsError: the weights cannot be had, are not the published ones, cannot be understood, or do not
            recognise the three photos; then nothing was written.
        ExportError, RepositoryError: the repository cannot be written.
        RuntimeError: no engine is installed to try them with.
    """
    source, path = _locate(request, say, progress, stop or threading.Event())
    network = _read(request, source, path)
    labels = _labels(request.labels, network.classes)
    name = source.name if source else path.stem
    weights = ServingWeights(name, network.variant, network.tensors, network.mean, labels, network.std)
    if request.labels is None:  # ILSVRC-2012's own classes: its mean is known
        check_mean(network.mean, str(request.mean or path))
    served = packed_weights(weights, {})
    for line in prove(served):
        say(line)
    ranges = _ranges(request, served)
    card = _card(source, network, path)
    export(Plan(weights, card, {}, request.views, ranges, (PHOTO.name, golden_image())), repository)
    files = unpack(read_repository(repository), request.precision)
    for model, file in files.items():
        say(f"{model}: {file} ({request.precision})")
    if request.calibrate is not None and request.precision == "int8" and "alexnet" in files:
        say(_agreement(served, files["alexnet"], request.calibrate))


def _locate(
    request: Request, say: Callable[[str], None], progress: Progress, stop: threading.Event
) -> tuple[Source | None, Path]:
    """The file, checked against what was published where that is known."""
    source = source_named(request.weights)
    if source is not None:
        folder = request.downloads or user_cache() / "downloads"
        target, digest = folder / source.file, None if request.unverified else source.digest
        if not target.exists():
            say(f"{source.title}, {source.megabytes} MB. {source.licence} {TERMS}")
        urls = (request.url,) if request.url else source.urls
        try:
            return source, fetch(urls, target, digest, progress=progress, stop=stop)
        except OSError as error:
            raise WeightsError(
                f"cannot write to {folder}: {error.strerror}; --downloads names another"
            ) from error
    path = Path(request.weights)
    if not path.is_file():
        raise WeightsError(f"{path} is neither a file nor one of {', '.join(SOURCES)}")
    source = named_like(path.name)
    if source is not None and not request.unverified and not matches(path, source.digest):
        found = digest_of(path, source.digest.partition(":")[0])
        raise WeightsError(
            f"{path} has {found}, published is {source.digest}: it is not the file that its "
            "name says. --unverified accepts it anyway"
        )
    return source, path


def _read(request: Request, source: Source | None, path: Path) -> Network:
    kind: Format | None = source.format if source else _format(path.name)
    if kind == "torchvision":
        network = torchvision.read(path)
    elif kind == "caffe":
        network = caffe.read(path, source.variant if source else request.variant)
    elif kind == "onnx":
        network = onnx_graph.read(path)
    else:
        raise WeightsError(f"{path}: expected a {', '.join(SUFFIXES)} file")
    return network if request.mean is None else replace(network, mean=caffe.read_mean(request.mean))


def _format(name: str) -> Format | None:
    return next((kind for end, kind in SUFFIXES.items() if name.lower().endswith(end)), None)


def _labels(path: Path | None, classes: int) -> tuple[tuple[str, str], ...]:
    lines = (path or LABELS).read_text(encoding="utf-8").splitlines()
    labels = [line.partition("\t")[::2] for line in lines]
    if len(labels) != classes or not all(wnid and words for wnid, words in labels):
        raise WeightsError(
            f"the weights have {classes} classes and {path or 'ILSVRC-2012'} names {len(labels)}: "
            "--labels FILE, one class per line: WordNet id, tab, words"
        )
    return tuple((wnid, words) for wnid, words in labels)


def _ranges(request: Request, served: ServingWeights) -> dict[str, Range] | None:
    if request.calibrate is not None:
        return calibrate(served, _photos(request.calibrate, request.least_photos))
    if request.precision == "int8":
        raise WeightsError("int8 needs photos to calibrate on: --calibrate FOLDER")
    return None


def _photos(folder: Path, least: int = 1) -> Iterator[NDArray[np.uint8]]:
    """Up to 300 photos of a folder and those below it, prepared; what is no photo is passed over."""
    found = 0
    for base, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            try:
                yield preprocess.prepare((Path(base) / name).read_bytes())
            except preprocess.PhotoError:
                continue
            found += 1
            if found == CALIBRATION_PHOTOS:
                return
    if not found:
        raise WeightsError(f"{folder} contains no photos")
    if found < least:
        raise WeightsError(f"{folder} holds {found} photos; to calibrate int8 takes {least}")


def _agreement(served: ServingWeights, int8: Path, folder: Path) -> str:
    """In how many of the calibration photos int8 gives the label that fp32 gives."""
    import onnx

    exact, quick = runner(serving_model(served, "center")), runner(onnx.load(int8))
    same = [
        int(exact(["probabilities"], photo[None])[0].argmax())
        == int(quick(["probabilities"], photo[None])[0].argmax())
        for photo in _photos(folder)
    ]
    return f"int8 gives fp32's label in {sum(same)} of {len(same)} photos of {folder}"


def _card(source: Source | None, network: Network, path: Path) -> Card:
    sha256 = digest_of(path, "sha256")
    if source is None:
        return Card(
            title=path.stem,
            summary=f"Imported from `{path.name}`.",
            data="Not known.",
            recipe="Not known.",
            licence="That of the imported file.",
            source=f"{path.name}, {sha256}",
        )
    verified = matches(path, source.digest)
    published = {"set": "ILSVRC-2012 validation, as published", "views": "center", "images": 50_000}
    return Card(
        title=source.title,
        summary=f"A thousand classes of ImageNet, as published; the `{network.variant.name}` network.",
        data="The 1.28 million training images of ILSVRC-2012.",
        recipe=f"Not trained here. {source.note}".strip(),
        licence=f"{source.licence} {TERMS}",
        limits=["It knows 1,000 things and always answers with one of them."],
        accuracy=[{**published, "top1": source.top1, "top5": source.top5}],
        source=f"{source.urls[0]}, {sha256}" + ("" if verified else " (not the published file)"),
    )
