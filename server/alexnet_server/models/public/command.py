"""``alexnet-train import``: public weights to a complete model repository."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.files import user_cache
from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.card import Card
from alexnet_server.models.export.graph import Precision, View
from alexnet_server.models.export.weights import ServingWeights
from alexnet_server.models.export.write import Plan, export, packed_weights
from alexnet_server.models.public import caffe, onnx_graph, torchvision
from alexnet_server.models.public.download import digest_of, fetch, matches
from alexnet_server.models.public.errors import WeightsError
from alexnet_server.models.public.network import Network
from alexnet_server.models.public.sources import SOURCES, SUFFIXES, Format, Source, named_like
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.photos import PHOTO, golden_image

LABELS = Path(__file__).parent / "imagenet_labels.txt"
"""The 1,000 classes of ILSVRC-2012: WordNet ids and WordNet's words, in order."""
CALIBRATION_PHOTOS = 300


def run(options: argparse.Namespace) -> None:
    """Fetch, check, convert, write, unpack.

    Raises:
        WeightsError: the weights cannot be had, are not the published ones, or cannot be understood.
        ExportError, RepositoryError: the repository cannot be written.
    """
    source, path = _locate(options)
    network = _read(options, source, path)
    name = source.name if source else path.stem
    weights = ServingWeights(
        name,
        network.variant,
        network.tensors,
        network.mean,
        _labels(options.labels, network.classes),
        network.std,
    )
    ranges = None
    if options.calibrate is not None:
        ranges = calibrate(packed_weights(weights, {}), _photos(options.calibrate))
    elif options.precision == "int8":
        raise WeightsError("int8 needs photos to calibrate on: --calibrate FOLDER")
    views: list[View] = options.views
    precision: Precision = options.precision
    golden = (PHOTO.name, golden_image())
    card = _card(source, network, path)
    export(Plan(weights, card, {}, views, ranges, golden), options.repository)
    for model, file in unpack(read_repository(options.repository), precision).items():
        print(f"{model}: {file} ({precision})")  # noqa: T201 - the command's own output


def _locate(options: argparse.Namespace) -> tuple[Source | None, Path]:
    """The file, checked against what was published where that is known."""
    source = SOURCES.get(options.weights)
    if source is not None:
        folder = options.downloads or user_cache() / "downloads"
        digest = None if options.unverified else source.digest
        try:
            return source, fetch(options.url or source.url, folder / source.file, digest)
        except OSError as error:
            raise WeightsError(
                f"cannot write to {folder}: {error.strerror}; --downloads names another"
            ) from error
    path = Path(options.weights)
    if not path.is_file():
        raise WeightsError(f"{path} is neither a file nor one of {', '.join(SOURCES)}")
    source = named_like(path.name)
    if source is not None and not options.unverified and not matches(path, source.digest):
        found = digest_of(path, source.digest.partition(":")[0])
        raise WeightsError(
            f"{path} has {found}, published is {source.digest}: not the file it is named after. "
            "--unverified takes it all the same"
        )
    return source, path


def _read(options: argparse.Namespace, source: Source | None, path: Path) -> Network:
    kind: Format | None = source.format if source else _format(path.name)
    if kind == "torchvision":
        network = torchvision.read(path)
    elif kind == "caffe":
        network = caffe.read(path, source.variant if source else options.variant)
    elif kind == "onnx":
        network = onnx_graph.read(path)
    else:
        raise WeightsError(f"{path}: expected a {', '.join(SUFFIXES)} file")
    return network if options.mean is None else replace(network, mean=caffe.read_mean(options.mean))


def _format(name: str) -> Format | None:
    return next((kind for end, kind in SUFFIXES.items() if name.lower().endswith(end)), None)


def _labels(path: Path | None, classes: int) -> tuple[tuple[str, str], ...]:
    lines = (path or LABELS).read_text(encoding="utf-8").splitlines()
    labels = [line.partition("\t")[::2] for line in lines]
    if len(labels) != classes or not all(wnid and words for wnid, words in labels):
        raise WeightsError(
            f"the weights tell {classes} classes apart and {path or 'ILSVRC-2012'} names {len(labels)}: "
            "--labels FILE, one class a line, WordNet id, tab, words"
        )
    return tuple((wnid, words) for wnid, words in labels)


def _photos(folder: Path) -> Iterator[NDArray[np.uint8]]:
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
        raise WeightsError(f"{folder} holds no photos")


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
        licence=source.licence,
        limits=["It knows 1,000 things and always answers with one of them."],
        accuracy=[{**published, "top1": source.top1, "top5": source.top5}],
        source=f"{source.url}, {sha256}" + ("" if verified else " (not the published file)"),
    )
