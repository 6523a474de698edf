"""The hot paths against plain references: reading, losses, testing, networks and iterations."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cispbench.harness.cross_entropy import cross_entropy
from cispbench.harness.data.decode import Digests, Pair, read_pair, sha256
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.evaluate import Prediction, confusion_matrix, evaluate
from cispbench.harness.machine.devices import autocast, to_device
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.transformer import Attention
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.harness.registry import load_method
from cispbench.methods import losses, mbs, plop
from cispbench.splits.settings import parse_setting

pytestmark = [pytest.mark.bench, pytest.mark.benchmark(timer=time.process_time)]

CPU = torch.device("cpu")
CLASSES, OLD, SIDE = 151, 141, 256
Compare = Callable[[Callable[[], object], Callable[[], object]], None]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def product() -> object:
    """A product of matrices of 0.5 GFLOP, the reference of networks."""
    return MATRIX @ MATRIX


MATRIX = torch.randn(640, 640)


# Reading.


@dataclass(frozen=True)
class Files:
    """Images of 500 x 375 pixels with masks, on a disk."""

    folder: Path
    digests: dict[str, Digests]

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        return read_pair(self.pair(image_id), "voc", self.digests[image_id])

    def pair(self, image_id: str) -> Pair:
        return Pair(self.folder / f"{image_id}.jpg", self.folder / f"{image_id}.png")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    digests, random = {}, np.random.default_rng(0)
    for name in map(str, range(8)):
        rough = random.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.jpg", quality=95)
        mask = Image.fromarray(random.integers(0, 3, (6, 8), np.uint8))
        mask.resize((500, 375), Image.Resampling.NEAREST).save(tmp_path / f"{name}.png")
        digests[name] = Digests(*(sha256((tmp_path / f"{name}.{end}").read_bytes()) for end in ("jpg", "png")))
    return Files(tmp_path, digests)


@pytest.mark.parametrize("resize", ["none", "scale", "area"])
def test_samples(compare: Compare, files: Files, resize: Any) -> None:
    """Against decoding, cutting out and mirroring alone."""
    names = list(files.digests)
    recipe = DataRecipe(crop=320, resize=resize, scale=(0.5, 1.5), flip=0.5)
    loader = TrainLoader(files, names, parse_setting("overlapped-15-1").label_table(0), recipe, 8, seed=0)  # type: ignore[arg-type]

    def bare() -> None:
        for pair in map(files.pair, names):
            for path in (pair.image, pair.mask):
                pixels = np.array(Image.open(io.BytesIO(path.read_bytes())))
                pixels[20:340, 90:410][:, ::-1].copy()

    compare(lambda: list(loader.epoch(0)), bare)


# Losses, at 151 classes: against a plain cross-entropy of torch.

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, old, target: losses.cross_entropy(logits, target),
    "unbiased_cross_entropy": lambda logits, old, target: losses.unbiased_cross_entropy(logits, target, OLD),
    "unbiased_distillation": lambda logits, old, target: losses.unbiased_distillation(logits, old),
    "distillation": lambda logits, old, target: losses.distillation(logits, old),
    "bce_with_ignore": lambda logits, old, target: losses.bce_with_ignore(logits, target),
    "label_guided": mbs.label_guided_output_distillation,
    "selective_pseudo_labels": lambda logits, old, target: mbs.selective_pseudo_labels(target, old),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(compare: Compare, name: str) -> None:
    logits, old = channels_last(1, CLASSES, SIDE, SIDE).requires_grad_(), channels_last(1, OLD, SIDE, SIDE)
    target = torch.randint(OLD, CLASSES, (1, SIDE, SIDE))
    target[:, : SIDE // 2] = 0

    def plain() -> None:
        logits.grad = None
        functional.cross_entropy(logits.movedim(1, -1).flatten(0, 2), target.flatten()).backward()

    def ours() -> None:
        logits.grad = None
        loss = LOSSES[name](logits, old, target)
        if loss.requires_grad:
            loss.backward()

    compare(ours, plain)


def test_local_pod(compare: Compare) -> None:
    """Against the squares of the map alone."""
    new, old, logits = (
        channels_last(4, 256, 64, 64).requires_grad_(),
        channels_last(4, 256, 64, 64),
        torch.randn(4, 21, 8, 8),
    )

    def ours() -> None:
        new.grad = None
        plop.pod_loss([new], [old], logits, logits[:, :16], 16, 5, 0.01, 5e-4).backward()

    compare(ours, lambda: new.square().sum().backward())


# Testing.


def test_confusion_matrix(compare: Compare) -> None:
    """Against numpy's bincount without any check."""
    prediction, target = (torch.randint(0, 21, (4, 512, 512)) for _ in range(2))
    target[0, :9] = 255
    found, truth = prediction.numpy(), target.numpy()

    def by_numpy() -> object:
        kept = truth != 255
        return np.bincount(21 * truth[kept] + found[kept], minlength=441)

    compare(lambda: confusion_matrix(prediction, target, 21), by_numpy)


@pytest.mark.parametrize("model", ["deeplabv3-mobilenetv2", "segmenter-mobilenetv2"])
def test_predictions(compare: Compare, model: str) -> None:
    """From the features of a network to counts, against the up-sampling of one map of as many classes."""
    network, batch = built(model, 512, 16, 5), images(2, 512)
    with torch.inference_mode():
        features = network.eval().features(batch.images)
    network.features = lambda images: features  # type: ignore[method-assign]
    rule, masks = Prediction(lambda output: output.logits, 21, 21), channels_last(2, 21, 32, 32)
    compare(
        lambda: evaluate(network, [batch], 21, CPU, "fp32", predict=rule),
        lambda: functional.interpolate(masks, size=(512, 512), mode="bilinear"),
    )


# Networks and iterations, against a product of matrices.


def built(model: str, side: int, *steps: int) -> IncrementalModel:
    torch.manual_seed(0)
    network = build_model(model, side)
    for classes in steps:
        network.grow(classes)
    return to_device(network, CPU)


def images(count: int, side: int) -> Batch:
    target = torch.randint(0, 3, (count, side, side))
    return Batch(channels_last(count, 3, side, side), target, tuple(map(str, range(count))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention(compare: Compare, precision: str) -> None:
    attention, tokens = Attention(192, 3), torch.randn(2, 530, 192, requires_grad=True)

    def ours() -> None:
        with autocast(CPU, precision):
            mixed = attention(tokens)
        mixed.float().sum().backward()

    compare(ours, product)


@pytest.mark.parametrize("model", ["deeplabv3-mobilenetv2", "deeplabv3-tiny", "segmenter-tiny"])
def test_training(compare: Compare, model: str) -> None:
    network, batch = built(model, 96, 21).train(), images(4, 96)
    compare(lambda: cross_entropy(network(batch.images).logits, batch.target).backward(), product)


@pytest.mark.parametrize("name", ["mbs", "mib", "plop"])
def test_iterations(compare: Compare, name: str) -> None:
    """An iteration of a quick run: both networks, losses, backward."""
    setting, method = parse_setting("overlapped-15-5"), load_method(name)()
    network = built("segmenter-tiny", 48, 16)
    previous = copy.deepcopy(network).eval().requires_grad_(False)
    network.grow(5)
    batch, context = images(8, 48), StepContext(setting, 1, 16, 5, network.train(), previous)
    batch.target[batch.target > 0] += 15
    with torch.no_grad():
        method.initialise(context)
        method.before_training(context, [batch])

    def ours() -> None:
        with torch.no_grad():
            old: Output = previous(batch.images)
        terms = method.losses(batch, network(batch.images), old, context)
        torch.stack(list(terms.values())).sum().backward()

    compare(ours, product)
