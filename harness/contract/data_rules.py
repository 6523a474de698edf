"""Rules about the data: what a method may know of labels and of test images."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.trace import listed
from cispbench.harness.contract.verdict import Finding
from cispbench.harness.method import VOID


@rule
def no_future_labels(bench: Bench) -> Iterator[Finding | str]:
    """Labels of future and old classes are not learnt from: the training is the same, bit for bit, when the masks
    lose them or have them swapped.
    """
    bench.needs_steps()
    trace = bench.main
    for step in trace.steps:
        own = range(max(1, step.old_classes), step.old_classes + step.new_classes)
        legal = {0, VOID, *own}
        for batch in (*step.measured, *(call.batch for call in step.calls)):
            foreign = sorted(set(torch.unique(batch.target).tolist()) - legal)
            if foreign:
                found = f"a batch holds the labels {foreign}, which are not of the step"
                yield Finding(found, trace.place(step), "Labels come from Setting.label_table.")
                return
    difference = bench.deviation(disguised=True)
    if difference is not None:
        yield Finding(
            f"with the labels of other classes disguised in the data, {difference}",
            trace.place(),
            "Learn from batch.target alone; read no masks.",
        )


@rule
def test_images_never_read(bench: Bench) -> Iterator[Finding | str]:
    """While a step is trained, test images are neither read nor listed."""
    trace = bench.main
    for step in trace.steps:
        if step.touched:
            found = f"the training {listed(step.touched)}"
            yield Finding(found, trace.place(step), "Use what the method is given: batches of training images.")
    bench.needs_end()
