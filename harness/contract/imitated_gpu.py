"""A GPU that is imitated: what code does with tensors on one is seen on a machine that has none.

Under torch's FakeTensorMode a tensor has a shape, a type and a device, and no values. An operator on two devices fails
there as it does on a GPU. Whatever needs a value would make a real GPU wait: such operators are noted, and get a value
that is made up (1, True), so that the code can go on. Backward passes need a real GPU, and fail.

What a fake tensor hides is told by the operator (``gpu_waits``).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cispbench.harness.contract.gpu_waits import GPU, Kind, hidden_wait, on_gpu
from cispbench.harness.method import Batch
from cispbench.splits.errors import describe_error

MOST_READS = 10_000  # of one block: a loop until a made-up value changes would never end
_LIBRARIES = {"torch", "torchvision", "timm", "numpy", *sys.stdlib_module_names}
_NUMPY = Tensor.numpy
_HERE = ("cispbench.harness.contract.imitated_gpu", "cispbench.harness.contract.gpu_rules")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Sighting:
    """One operator that a GPU minds, and the line of code that called it.

    ``kind``: tensors of both "devices" meet; a value is "read" from the GPU, or goes there by a "copy" from the CPU,
    and the host waits for it; a "kernel" of CUDA reads a value inside.
    """

    kind: Kind
    operator: str
    file: str
    line: int

    @property
    def place(self) -> str:
        """The file, by its last folder and name, and the line."""
        return f"{'/'.join(Path(self.file).parts[-2:])}:{self.line}"


class EndlessReadsError(Exception):
    """The code reads values again and again, and made-up ones do not end it."""


class ImitatedGpu:
    """Watches the code that runs within ``watch``; ``put`` makes what lies on the GPU, and is called there or outside.

    ``own``: the packages whose lines are told first, before those of the libraries they call.
    """

    def __init__(self, own: Collection[str] = ()) -> None:
        # Where torch cannot tell what an operator returns, it is to say so, not to run it on a real GPU.
        self._fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self._own = tuple(own)
        self.seen: list[Sighting] = []

    @contextmanager
    def watch(self) -> Iterator[list[Sighting]]:
        """Give a list of what the block does that a GPU minds. Operators on two devices fail in it."""
        self.seen = []
        with ExitStack() as stack:
            # Without a GPU torch.autocast would not be on, and say so.
            stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
            stack.enter_context(mock.patch.object(Tensor, "numpy", _made_up_array))
            stack.enter_context(mock.patch.object(FakeTensor, "tolist", self._made_up_list, create=True))
            stack.enter_context(mock.patch.object(FakeTensor, "__format__", self._made_up_text))
            stack.enter_context(self._fake)
            stack.enter_context(_Watch(self))
            yield self.seen

    @contextmanager
    def left(self) -> Iterator[None]:
        """Compute with real tensors for a while, within ``watch``: to read data, for example."""
        with no_dispatch():
            yield

    def put(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the GPU of another one's shape, strides, type and kind (a parameter stays one)."""
        with self._fake:
            size, stride = tuple(tensor.shape), tensor.stride()
            made = torch.empty_strided(size, stride, dtype=tensor.dtype, device=GPU)
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(made, requires_grad=tensor.requires_grad)
            return made

    def put_module(self, module: Network) -> Network:
        """Return a copy of a network whose parameters and buffers lie on the GPU."""
        tensors = [*module.parameters(), *module.buffers()]
        # What a deep copy finds in its memo it does not copy: tied parameters stay tied.
        return copy.deepcopy(module, {id(tensor): self.put(tensor) for tensor in tensors})

    def put_batch(self, batch: Batch) -> Batch:
        """Return a batch whose tensors lie on the GPU."""
        return replace(
            batch,
            images=self.put(batch.images),
            target=self.put(batch.target),
            origin=None if batch.origin is None else self.put(batch.origin),
            companions=self.put_all(batch.companions),
        )

    def put_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by name, all on the GPU."""
        return {name: self.put(tensor) for name, tensor in tensors.items()}

    @property
    def _made_up_list(self) -> Callable[[FakeTensor], Any]:
        def tolist(tensor: FakeTensor) -> Any:
            if on_gpu(tensor):
                self.note("read", "tolist")
            # At once: torch reads the values of a fake tensor one by one.
            with no_dispatch():
                return _values(tensor).tolist()

        return tolist

    @property
    def _made_up_text(self) -> Callable[[FakeTensor, str], str]:
        def in_text(tensor: FakeTensor, spec: str) -> str:
            if on_gpu(tensor):
                self.note("read", "format")
            # torch refuses to format a fake tensor as a number.
            with no_dispatch():
                return format(_values(tensor), spec)

        return in_text

    def note(self, kind: Kind, operator: str) -> None:
        """Note an operator that is being called."""
        if len(self.seen) >= MOST_READS:
            raise EndlessReadsError(f"values are read {MOST_READS} times")
        frame = _calling_frame(self._own)
        self.seen.append(Sighting(kind, operator, frame.f_code.co_filename, frame.f_lineno))


@cache
def no_imitation() -> str | None:
    """Return why no GPU can be imitated here, None if one can: torch promises nothing about what is used for it."""
    gpu = ImitatedGpu()
    try:
        with gpu.watch() as seen:
            ones = gpu.put(torch.ones(2))
            with suppress(RuntimeError):
                ones + torch.ones(2)
            ones.sum().item()
    except Exception as error:  # noqa: BLE001 (whatever another version of torch raises)
        return f"torch {torch.__version__} imitates no GPU: {describe_error(error)}"
    if [one.kind for one in seen] != ["devices", "read"]:
        return f"torch {torch.__version__} does not tell what a GPU minds"
    return None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, gpu: ImitatedGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "to":  # as it comes in inference mode; elsewhere torch has taken it apart before
            with self:
                return func.decompose(*args, **kwargs)
        kind = hidden_wait(name, args, kwargs)
        if kind is not None:
            self._gpu.note(kind, name)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            # Values on the CPU may be read: it waits for nobody.
            device = GPU if any(on_gpu(value) for value in (*args, *kwargs.values())) else torch.device("cpu")
            if device is GPU:
                self._gpu.note("read", name)
            return _made_up(func, args, kwargs, device)
        except RuntimeError as error:
            if _is_of_devices(error):
                self._gpu.note("devices", name)
            raise


def _is_of_devices(error: RuntimeError) -> bool:
    # By its words: older versions of torch have no error of its own for it.
    return any(words in str(error) for words in ("same device", "two different devices", "at least two devices"))


def _made_up(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Any:
    """Return what an operator gives for tensors of ones, as fake tensors on a device; numbers stay numbers."""
    with no_dispatch():
        ones = tree_map(lambda v: torch.ones(v.shape, dtype=v.dtype) if isinstance(v, Tensor) else v, (args, kwargs))
        found = func(*ones[0], **ones[1])
    return tree_map(lambda v: torch.empty(v.shape, dtype=v.dtype, device=device) if isinstance(v, Tensor) else v, found)


def _values(tensor: FakeTensor) -> Tensor:
    """Return a real tensor: what was written down as a list has its values, all else is ones. Within no_dispatch."""
    known: Tensor | None = getattr(tensor, "constant", None)
    return torch.ones(tensor.shape, dtype=tensor.dtype) if known is None else known


def _made_up_array(tensor: Tensor, *, force: bool = False) -> Any:
    with no_dispatch():
        return _NUMPY(torch.ones(tensor.shape, dtype=tensor.dtype) if isinstance(tensor, FakeTensor) else tensor)


def _calling_frame(own: Sequence[str]) -> FrameType:
    """Return the innermost frame of the packages ``own``, or else that of any code but a library's."""
    frame: FrameType | None = sys._getframe()
    innermost = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == _HERE[1]:
            break
        if any(f"{module}.".startswith(f"{package}.") for package in own):
            return frame
        if innermost is None and module not in _HERE and module.partition(".")[0] not in _LIBRARIES:
            innermost = frame
        frame = frame.f_back
    return innermost or frame or sys._getframe()
