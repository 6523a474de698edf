"""Fine-tuning's only term, which Joint has, too: torch's own cross-entropy, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.registry import load_method
from cispbench.splits.settings import parse_setting


@pytest.mark.parametrize("name", ["finetune", "joint"])
def test_the_loss_is_the_cross_entropy_of_all_labelled_pixels(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 8, 8, generator=generator, requires_grad=True)
    masks = torch.randn(2, 4, 2, 2, generator=generator)
    target = torch.randint(0, 4, (2, 8, 8), generator=generator)
    target[0, :2] = 255
    none = torch.empty(0)
    context = StepContext(parse_setting("overlapped-15-1"), 1, 2, 2, None, None)  # type: ignore[arg-type]
    output = Output(logits, masks, none, none, none, none)
    terms = load_method(name)().losses(Batch(torch.empty(2, 3, 8, 8), target, ("a", "b")), output, None, context)
    assert terms.keys() == {"cross_entropy"}
    expected = functional.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(terms["cross_entropy"], expected)
    found = torch.autograd.grad(terms["cross_entropy"], logits)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits))
