"""Swin-B and MiT-B2 as encoders: their maps, their sizes, and the authors' names in files of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.interface import Encoder, IncrementalModel

NAMES = ["deeplabv3-swin-b", "deeplabv3-swin-b-branches", "deeplabv3-mit-b2"]


def built(name: str, size: int, device: str = "meta") -> IncrementalModel:
    with torch.device(device):
        model = build_model(name, size)
        model.grow(3)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "last"), [(512, 16), (513, 17)])
def test_maps_have_the_released_networks_sizes(name: str, side: int, last: int) -> None:
    model = built(name, side)
    output = model(torch.zeros(1, 3, side, side, device="meta"))
    assert output.masks.shape[-2:] == (last, last)
    assert output.logits.shape == (1, 3, side, side)
    widths = (64, 128, 320, 512) if "mit" in name else (128, 256, 512, 1024)
    assert tuple(stage.shape[1] for stage in output.stages[:4]) == widths
    sides = [stage.shape[-1] for stage in output.stages[:4]]
    assert sides == [-(-side // stride) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize(("name", "millions"), [("deeplabv3-swin-b", 86.9), ("deeplabv3-mit-b2", 24.2)])
def test_an_encoder_has_as_many_parameters_as_published(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in built(name, 64).sections()["encoder"].parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["deeplabv3-swin-b", "deeplabv3-mit-b2"])
def test_a_small_image_gives_finite_logits_and_gradients_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    model = built(name, 64, "cpu").train()
    logits = model(torch.randn(2, 3, 50, 70)).logits
    assert logits.shape == (2, 3, 50, 70)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_windows_stay_those_of_the_weights_at_every_size() -> None:
    tables = [
        {name: value.shape for name, value in built("deeplabv3-swin-b", side).state_dict().items() if "table" in name}
        for side in (64, 384, 512)
    ]
    assert tables[0] == tables[1] == tables[2]
    assert {shape[0] for shape in tables[0].values()} == {23 * 23}


def swins_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' names: maps shrink at the end of a stage, and tables of indices are stored."""
    for stage in (1, 2, 3):
        old, new = f"layers.{stage}.downsample.", f"layers.{stage - 1}.downsample."
        state = {name.replace(old, new): value for name, value in state.items()}
    return state | {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(144, 144),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 144, 144),
        "head.weight": torch.zeros(1000, 1024),
        "head.bias": torch.zeros(1000),
    }


def mits_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' names: stages are counted from 1 and have no name of their own."""
    found = {}
    for name, value in state.items():
        for stage in range(4):
            start = f"stages.{stage}."
            name = name.replace(f"{start}downsample.", f"patch_embed{stage + 1}.")
            name = name.replace(f"{start}blocks.", f"block{stage + 1}.").replace(f"{start}norm.", f"norm{stage + 1}.")
        found[name.replace("patch_embed.", "patch_embed1.").replace(".dwconv.", ".dwconv.dwconv.")] = value
    return found | {"head.weight": torch.zeros(1000, 512), "head.bias": torch.zeros(1000)}


@pytest.mark.parametrize(
    ("name", "authors", "some"),
    [
        ("deeplabv3-swin-b", swins_names, "layers.0.downsample.reduction.weight"),
        ("deeplabv3-mit-b2", mits_names, "block4.2.mlp.dwconv.dwconv.weight"),
    ],
)
def test_files_with_the_authors_names_are_taken(name, authors, some) -> None:
    torch.manual_seed(0)
    model, other = built(name, 64, "cpu"), built(name, 64, "cpu")
    encoder = other.sections()["encoder"]
    assert isinstance(encoder, Encoder)
    backbone = encoder.backbone()
    assert backbone is not None
    state = authors(dict(backbone.state_dict()))
    assert some in state
    model.load_encoder(state, "a file")
    mine, theirs = model.sections()["encoder"].state_dict(), encoder.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
