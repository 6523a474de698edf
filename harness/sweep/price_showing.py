"""The price of a plan as text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from cispbench.harness.sweep.pricing import Price, PricedRow, gib
from cispbench.harness.sweep.showing import TableWriter

PETA = 1e15
WHAT = (
    "An estimate. Counted are products of matrices and convolutions: the network forward and backward, the previous "
    "network, and the tests. The losses of methods, their hooks, other layers and the loading of images come on top; "
    "memory is that of the networks, the optimiser, the batch and a cross-entropy. Hours are those of all devices "
    "together."
)


def price_text(price: Price, table: TableWriter) -> list[str]:
    """Return lines: a table of hours on each device and of memory, what was assumed, and warnings."""
    if not price.rows:
        return ["", "Nothing has to be trained or tested: it costs nothing."]
    headers = ["cost of", "steps", "PFLOP", *(f"{device.name} hours" for device in price.devices), "GiB a device"]
    rows = [_cells(row, price) for row in price.rows]
    if len(rows) > 1:
        rows.append(_cells(_total(price), price))
    assumed = [f"{device.describe(price.precisions)}." for device in price.devices]
    warnings = [f"Warning: {warning}" for warning in price.warnings]
    return ["", table(headers, rows, headers[1:]), "", WHAT, *assumed, *warnings]


def price_json(price: Price) -> dict[str, Any]:
    """Return the same for scripts: ``rows``, their ``total``, ``devices`` and ``warnings``; seconds and bytes."""
    return {
        "estimate": WHAT,
        "rows": [_row(row, price) for row in price.rows],
        "total": _row(_total(price), price),
        "devices": [
            {"name": device.name, "memory_bytes": device.memory, "assumed": device.describe(price.precisions)}
            for device in price.devices
        ],
        "warnings": price.warnings,
    }


def _total(price: Price) -> PricedRow:
    work = [work for row in price.rows for work in row.work]
    return PricedRow("in all", sum(row.steps for row in price.rows), work, price.largest.largest)


def _row(row: PricedRow, price: Price) -> dict[str, Any]:
    return {
        "name": row.name, "steps": row.steps, "flops": row.flops, "memory_bytes": round(row.bytes),
        "device_seconds": {device.name: row.seconds(device) for device in price.devices},
    }  # fmt: skip


def _cells(row: PricedRow, price: Price) -> list[str]:
    hours = [digits(row.seconds(device) / 3600) for device in price.devices]
    return [row.name, str(row.steps), digits(row.flops / PETA), *hours, gib(row.bytes) if row.bytes else "-"]


def digits(value: float) -> str:
    """Write two digits at least, without an exponent."""
    if value >= 10:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}"
    places = 0 if value == 0 else 1 - math.floor(math.log10(value))
    return f"{value:.{places}f}"
