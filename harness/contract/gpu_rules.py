"""The rule about GPUs: what a method does there, seen without one (``imitated_gpu``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cispbench.harness.contract.bench import SEED, Bench
from cispbench.harness.contract.gpu_waits import GPU
from cispbench.harness.contract.probe import first_batch, own_steps
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.verdict import NotApplicable, Violation
from cispbench.harness.evaluate import Prediction, count_on_device
from cispbench.harness.machine.devices import autocast
from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.runs.method_code import with_bases
from cispbench.harness.step import View
from cispbench.harness.training.optimisation import build_optimizer
from cispbench.splits.errors import describe_error

if TYPE_CHECKING:
    from cispbench.harness.contract.imitated_gpu import ImitatedGpu

PRECISIONS = ("fp32", "bf16")
FOUND = {
    "devices": ("brings a tensor on the CPU together with one on the GPU",
                "Make it where the others are: torch.zeros(..., device=batch.target.device)."),
    "read": ("reads values from the GPU, which has to wait for it",
             "Stay on the GPU: torch.where, masked_fill and sums instead of item(), if, and masks as indices."),
    "copy": ("copies values from the CPU to the GPU, which has to wait for it",
             "Make them on the GPU: torch.arange and comparisons with device=... instead of a list or a tensor of the "
             "CPU; or copy by .to(device, non_blocking=True)."),
    "kernel": ("calls an operator that reads values from the GPU, which has to wait for it",
               "Use another one: comparisons instead of isin with many values, histc with its bounds."),
}  # fmt: skip
PASSED = 2  # batches of a pass that the rule shows
OPERATORS = {"_local_scalar_dense": "item", "_to_copy": "to"}  # by the names that people write
Result = TypeVar("Result")


@rule
def gpu_ready(bench: Bench) -> Iterator[Violation | str]:
    """On a GPU all hooks make their tensors there, and those of an iteration and `scores` never make it wait: they read
    no value from it, and copy none to it.

    Examined without a GPU, in float32 and under bf16 autocast, up to the backward pass.
    """
    bench.require_finished()
    reason = no_imitation()
    if reason is not None:
        raise NotApplicable(reason)
    for step in own_steps(bench):
        yield from _StepOnGpu(bench, step).found()


def no_imitation() -> str | None:
    """Return why no GPU can be imitated here, None if one can."""
    try:
        # Not with this module: it needs names that are private to torch, which another version may lack.
        from cispbench.harness.contract import imitated_gpu
    except (ImportError, AttributeError) as error:
        return f"torch {torch.__version__} imitates no GPU: {describe_error(error)}"
    reason: str | None = imitated_gpu.no_imitation()
    return reason


def _imitated(own: Sequence[str]) -> ImitatedGpu:
    from cispbench.harness.contract.imitated_gpu import ImitatedGpu

    return ImitatedGpu(own)


class _StepOnGpu:
    """One step of the main training, whose hooks are called again with all tensors on an imitated GPU."""

    def __init__(self, bench: Bench, step: int) -> None:
        self._bench, self._seen = bench, bench.finished.steps[step]
        classes = [cls for one in with_bases(bench.method) for cls in type(one).__mro__ if issubclass(cls, Method)]
        modules = {cls.__module__ for cls in classes} - {"cispbench.harness.method", "cispbench.harness.wrapper"}
        roots = {name.partition(".")[0] for name in modules}
        self._gpu = _imitated(["cispbench.methods" if root == "cispbench" else root for root in roots])
        context = self._seen.context
        previous = None if context.previous is None else self._gpu.put_module(context.previous)
        if previous is not None:
            previous.eval().requires_grad_(False)
        self._context = replace(context, model=self._gpu.put_module(context.model), previous=previous)
        self._place = bench.finished.at(self._seen)
        self._noted: dict[str, Violation | str] = {}

    def found(self) -> Iterable[Violation | str]:
        """Call the hooks of the step, and return what is found, each once."""
        seen, method = self._seen, self._restored(self._seen.state_before or {})
        self._select(method)
        first = self._of_phase(seen.phases[0])
        self._outside("initialise", lambda: method.initialise(first))
        for phase in seen.phases:
            # The state is that of the training: a pass over made-up values has measured nothing.
            method = self._phase(phase, method, self._restored(seen.state_at[phase]))
        self._test(self._bench.make())
        return self._noted.values()

    def _restored(self, state: dict[str, Tensor]) -> Method:
        method, moved = self._bench.make(), self._gpu.put_all(state)
        if moved:
            self._call("load_state_dict", lambda: method.load_state_dict(moved), waits=True)
        return method

    def _select(self, method: Method) -> None:
        step = self._context.step
        if step == 0 or method.memory() is None:
            return
        before = self._bench.finished.steps[step - 1]
        images = [self._gpu.put_batch(batch) for batch in before.batches_of(before.phases[-1])]
        kept, context = before.exemplars or [], self._of_phase(self._seen.phases[0])
        self._outside("select_exemplars", lambda: method.select_exemplars(images, kept, context))

    def _phase(self, phase: str, before: Method, method: Method) -> Method:
        """Call the hooks of a phase and return ``method``, which takes over where ``before`` has measured."""
        context, recipe = self._of_phase(phase), self._bench.recipe().phase(self._context.step, phase)
        self._outside("before_training", lambda: before.before_training(context, context.batches()))
        learnt = {id(p) for group in build_optimizer(context, recipe, GPU).param_groups for p in group["params"]}
        parameters = {name: p for name, p in context.model.named_parameters() if id(p) in learnt}
        gradients = {name: self._gpu.put(parameter.detach()) for name, parameter in parameters.items()}
        for precision in PRECISIONS:
            self._iteration(method, context, precision, gradients)
        self._outside("after_training", lambda: method.after_training(context))
        return method

    def _iteration(self, method: Method, context: StepContext, precision: str, gradients: dict[str, Tensor]) -> None:
        """Do an iteration as ``training/iteration.py`` does, without its backward pass and its update."""
        notes: dict[str, Tensor] = {}
        context = replace(context, services=_Services(self._batches(context.phase), notes))
        given = self._gpu.put_batch(first_batch(self._bench, context.step, context.phase))
        batch = self._call("prepare", lambda: method.prepare(given, context), grad=False)
        if batch is None:
            return
        model, previous = context.model.train(), context.previous if method.reads_previous else None
        output = self._call("the network", lambda: model(*batch.inputs), precision)
        old = None if previous is None else self._call("the network", lambda: previous(*batch.inputs), precision, False)
        if output is None or (old is None) != (previous is None):
            return
        self._on_gpu("losses", self._call("losses", lambda: method.losses(batch, output, old, context)))
        if method.micro_batches:
            self._on_gpu("counts", self._call("counts", lambda: method.counts(batch, old, context), grad=False))
        self._call("after_gradients", lambda: method.after_gradients(gradients, context), grad=False)
        self._on_gpu("context.log", notes)

    def _test(self, method: Method) -> None:
        """Evaluate on the GPU, without the last copy of the counts to the CPU."""
        setting, step = self._context.setting, self._context.step
        predict = Prediction(method.scores, setting.num_classes(step), setting.num_foreground + 1)
        model, batch = self._context.model, self._gpu.put_batch(first_batch(self._bench, step))
        for precision in PRECISIONS:
            count = partial(count_on_device, model, [batch], predict.classes, GPU, precision, None, predict)
            self._call("scores", count)

    def _outside(self, hook: str, call: Callable[[], Any]) -> None:
        """Call a hook outside the iterations, as ``training/hooks.py`` does: it may wait."""
        self._context.model.eval()
        self._call(hook, call, grad=False, waits=True)

    def _call(
        self, hook: str, call: Callable[[], Result], precision: str = "fp32", grad: bool = True, waits: bool = False
    ) -> Result | None:
        """Call a hook, note what the GPU minds in it, and return its result, None where it failed."""
        result: Result | None = None
        with self._gpu.watch() as seen:
            try:
                with autocast(GPU, precision), torch.set_grad_enabled(grad):
                    result = call()
            except Exception as error:  # noqa: BLE001 (with made-up values anything may be raised)
                if not any(one.kind == "devices" for one in seen):
                    self._note(f"{hook} was not followed to its end: {describe_error(error)}")
        for one in seen:
            if one.kind == "devices" or not waits:
                found, advice = FOUND[one.kind]
                operator = OPERATORS.get(one.operator, one.operator)
                self._note(Violation(f"{hook} {found} ({operator} at {one.place})", self._place, advice))
        return result

    def _on_gpu(self, hook: str, values: Mapping[str, Any] | None) -> None:
        """Note the tensors by name that a hook gives to the harness, which puts them together on the GPU."""
        for name, value in (values or {}).items():
            if isinstance(value, Tensor) and value.device.type != GPU.type:
                self._note(Violation(f"{hook} gives {name!r} as a tensor on the CPU", self._place, FOUND["devices"][1]))

    def _note(self, found: Violation | str) -> None:
        self._noted.setdefault(str(found), found)

    def _of_phase(self, phase: str) -> StepContext:
        generator = torch.Generator().manual_seed(SEED)
        return replace(self._context, phase=phase, generator=generator, services=_Services(self._batches(phase), {}))

    def _batches(self, phase: str) -> Callable[[View, int | None, Sequence[str] | None], Iterator[Batch]]:
        def read(view: View, size: int | None, ids: Sequence[str] | None) -> Iterator[Batch]:
            passed = iter(self._seen.passes[phase](view, size, ids))
            if size is None and ids is None:  # all batches look alike; with either, a method may ask for every image
                passed = islice(passed, PASSED)
            while True:
                with self._gpu.left():
                    batch = next(passed, None)
                if batch is None:
                    return
                yield self._gpu.put_batch(batch)

        return read


class _Services:
    """What the harness does for a method on one device; ``notes``: what is logged."""

    def __init__(self, batches: Callable[..., Iterator[Batch]], notes: dict[str, Tensor]) -> None:
        self.batches, self._notes = batches, notes

    def batch_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def log(self, name: str, value: Tensor) -> None:
        self._notes[name] = value
