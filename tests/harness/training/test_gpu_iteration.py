"""A whole iteration without its backward pass, and an evaluation, on an imitated GPU: nothing makes it wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.contract.bench import Bench, Sizes
from cispbench.harness.contract.check import models_to_check
from cispbench.harness.contract.gpu_waits import GPU
from cispbench.harness.contract.imitated_gpu import ImitatedGpu, Sighting
from cispbench.harness.contract.probe import first_batch
from cispbench.harness.evaluate import Prediction, evaluate
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method, StepContext
from cispbench.harness.registry import load_method, method_names
from cispbench.harness.training.iteration import PhaseTraining
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.nonfinite import DeviceLosses
from cispbench.harness.training.optimisation import Stepper
from cispbench.harness.training.services import StepServices
from cispbench.harness.training.shared_base import SharedBase
from cispbench.harness.training.state import TrainingState
from tests.harness.training.toys import Loader

SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)

pytestmark = pytest.mark.usefixtures("one_thread")


class WithoutBackward(Stepper):
    """Leaves out what needs a GPU: the backward pass, after which there are gradients, and the optimiser's kernel."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizer.step = self._kernel  # type: ignore[method-assign, assignment]

    def _kernel(self) -> None:
        told: Any = self.optimizer
        assert all(group["fused"] for group in told.param_groups)
        assert told.found_inf.device == GPU and told.found_inf.shape == ()

    def backward(self, loss: Tensor) -> None:
        assert loss.device == GPU and loss.shape == ()
        self.scaler.scale(loss)
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def update(self, loss_finite: Tensor, after_gradients: Callable[[], None] | None = None) -> Tensor:
        if after_gradients is not None:
            after_gradients()  # called here, as the harness waits for the gradients before it shows them
        return super().update(loss_finite)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """Short trainings of methods, each once; they give networks, batches and states."""
    benches: dict[str, Bench] = {}

    def find(name: str) -> Bench:
        if name not in benches:
            cls, folder = load_method(name), tmp_path_factory.mktemp(name)
            made = [Bench(cls, model, SMALL, folder) for model in models_to_check(cls)]
            benches[name] = next(bench for bench in made if bench.unsupported() is None)
            benches[name].require_finished()
        return benches[name]

    return find


def on_gpu(bench: Bench, gpu: ImitatedGpu, step: int) -> tuple[Method, StepContext]:
    """Return the method and the context of a step as they are when the iterations of its last phase begin."""
    seen = bench.finished.steps[step]
    method = SharedBase() if step == 0 and bench.method.shared_base else bench.make()
    with gpu.watch():
        method.load_state_dict(gpu.put_all(seen.state_at[seen.phases[-1]]))
    previous = None if seen.context.previous is None else gpu.put_module(seen.context.previous).eval()
    model = gpu.put_module(seen.context.model)
    return method, replace(seen.context, model=model, previous=previous, phase=seen.phases[-1])


def iterate(
    bench: Bench, gpu: ImitatedGpu, step: int, precision: str, **changes: Any
) -> tuple[DeviceLosses, list[Sighting]]:
    method, context = on_gpu(bench, gpu, step)
    with gpu.watch() as seen:
        recipe = replace(bench.recipe().phase(step, context.phase), precision=precision)
        fields: dict[str, Any] = {
            "method": method, "context": context, "phases": {context.phase: recipe}, "loader": lambda _: Loader(),
            "device": GPU, "seed": 0, "checkpoint": Path("none"), "view": ProgressView(), "images": 4, **changes,
        }  # fmt: skip
        job = TrainingJob(**fields)
        state = TrainingState(job)
        services = StepServices(job, state.phase.loader)
        context = replace(context, services=services, generator=state.generator)
        stepper = WithoutBackward(context, recipe, 1, GPU)
        training = PhaseTraining(job, state, stepper, context, services)
        seen.clear()  # once for a phase, the weights of both networks are compared
        # From the CPU, as the loader gives it.
        losses = training.iterate(first_batch(bench, step, context.phase).to(GPU))
    return losses, seen


def steps_of(bench: Bench) -> range:
    return range(len(bench.finished.steps))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", method_names())
def test_no_iteration_makes_a_gpu_wait(trained: Callable[[str], Bench], name: str, precision: str) -> None:
    bench = trained(name)
    for step in steps_of(bench):
        losses, seen = iterate(bench, ImitatedGpu(), step, precision)
        assert not seen, [(one.kind, one.operator, one.place) for one in seen]
        assert losses.terms and losses.finite.device == GPU
        assert all(tensor.device == GPU for tensor in (*losses.terms.values(), *losses.notes.values()))


@pytest.mark.parametrize("name", [name for name in method_names() if load_method(name).micro_batches])
def test_nor_does_one_in_micro_batches(trained: Callable[[str], Bench], name: str) -> None:
    bench = trained(name)
    for step in steps_of(bench):
        method, _ = on_gpu(bench, ImitatedGpu(), step)
        if not method.micro_batches:
            continue
        # The first global batch alone is looked at for what the method changes: this reads its state.
        losses, seen = iterate(bench, ImitatedGpu(), step, "fp32", micro_batch=2)
        assert {one.place.rpartition(":")[0] for one in seen} <= {"training/micro_batches.py"}
        assert all(one.operator == "equal" for one in seen)
        assert len(losses.ids) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", method_names())
def test_an_evaluation_waits_once_at_its_end(trained: Callable[[str], Bench], name: str, precision: str) -> None:
    bench = trained(name)
    for step in steps_of(bench):
        gpu, setting = ImitatedGpu(), bench.setting
        _, context = on_gpu(bench, gpu, step)
        predict = Prediction(bench.make().scores, setting.num_classes(step), setting.num_foreground + 1)
        batches = [first_batch(bench, step)] * 2
        with gpu.watch() as seen:
            total = evaluate(context.model, batches, predict.classes, GPU, precision, predict=predict)
        assert [(one.kind, one.operator, one.place.rpartition(":")[0]) for one in seen] == [
            ("read", "_to_copy", "harness/evaluate.py")
        ]
        assert total.device.type == "cpu" and total.dtype == torch.int64
