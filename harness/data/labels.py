"""Labels by table: the data set's class numbers in a mask become labels in the order of learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cispbench.splits.errors import DataError
from cispbench.splits.settings import VOID

Void = Literal["void", "background"]
ILLEGAL_LABEL = 254


def to_table(labels: Sequence[int] | Tensor, void: Void = "void") -> Tensor:
    """Return 256 labels as a table, uint8 (256,); a negative label (a value to be refused) becomes 254.

    ``void="background"`` makes void (255) background (0), as MiB's and MBS's released code does for training.
    Raises ValueError unless there are 256 labels below 254 (or 255).
    """
    table = torch.as_tensor(labels)
    if table.shape != (256,):
        raise ValueError(f"a table has 256 labels, not the shape {tuple(table.shape)}")
    if void not in ("void", "background"):
        raise ValueError(f"void is 'void' or 'background', not {void!r}")
    if table.dtype != torch.uint8:
        if bool(((table >= ILLEGAL_LABEL) & (table != VOID)).any()):
            raise ValueError(f"a label must be below {ILLEGAL_LABEL}, or {VOID} for void; got {int(table.max())}")
        table = torch.where(table < 0, ILLEGAL_LABEL, table).to(torch.uint8)
    if void == "background":
        table = table.clone()
        table[VOID] = 0
    return table


def relabel(mask: Tensor, table: Tensor, place: str = "the mask") -> Tensor:
    """Return the label of every pixel, uint8, in the shape of ``mask`` (uint8, on the CPU, any shape).

    ``table``: from ``to_table``. Raises DataError, naming ``place``, for a pixel whose value the table refuses.
    """
    if mask.dtype != torch.uint8:
        raise TypeError(f"a mask is uint8, not {mask.dtype}")
    # bytes.translate: 0.1 ms for 512 x 512 pixels, where indexing a tensor by a tensor takes 0.6 to 2 ms.
    labels = bytearray(mask.contiguous().numpy()).translate(table.numpy().tobytes())
    first = labels.find(ILLEGAL_LABEL)
    if first >= 0:
        value = int(mask.flatten()[first])
        raise DataError(
            f"{place} holds the value {value}, which has no label.",
            hint="Legal are the classes of the data set, 0 for background and 255 for void.",
        )
    return torch.frombuffer(labels, dtype=torch.uint8).view(mask.shape) if labels else mask.clone()
