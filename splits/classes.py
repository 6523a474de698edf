"""Class names and colours of the data sets, by class number."""

from __future__ import annotations

from cispbench.splits.datasets import Colour, dataset


def class_names(name: str) -> tuple[str, ...]:
    """Return the names of a data set's classes; place 0 is ``background``. Raises SettingError on an unknown name."""
    return ("background", *dataset(name).class_names)


def palette(name: str) -> tuple[Colour, ...]:
    """Return red, green, blue (0 to 255) of every class number, background first. Raises SettingError as above."""
    home = dataset(name)
    return home.palette or tuple(_voc_colour(number) for number in range(home.classes + 1))


def _voc_colour(number: int) -> Colour:
    """Return VOC's customary colour: bits 0, 1, 2 of the number are the top bits of red, green, blue, and so on."""
    red, green, blue = (
        sum(((number >> (3 * place + channel)) & 1) << (7 - place) for place in range(3)) for channel in range(3)
    )
    return red, green, blue
