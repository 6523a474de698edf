"""A grid of coloured cells below each other and side by side, which heat maps and confusion matrices are made of."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLANK = "#dddddd"  # of what would be measured, and is not defined
_MOST_SHAPES = 4000  # cells; more of them are one image, which keeps an SVG small


def draw_grid(axes: Axes, values: Floats, colours: Colormap, norm: Normalize) -> ScalarMappable:
    """Draw values (R, C) as cells of side 1, the first row at the top; nan leaves the page's white.

    Cell (r, c) fills c to c + 1 and r to r + 1.
    """
    rows, columns = values.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    shown = np.ma.masked_invalid(values)
    if values.size <= _MOST_SHAPES:
        return axes.pcolormesh(shown, cmap=colours, norm=norm, linewidth=0)
    extent = (0, columns, rows, 0)
    return axes.imshow(shown, cmap=colours, norm=norm, interpolation="none", extent=extent, aspect="auto")
