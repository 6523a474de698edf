"""A recipe file may extend another one of its folder: its layers come after those, and quirks of both hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.recipes.quirks import read_quirks
from cispbench.harness.recipes.recipe_files import read_layers, read_recipe_file
from cispbench.methods.mib import MiBOptions
from cispbench.methods.ssul import SSUL, SSULM
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import parse_setting

BASE = """
quick:
  - source: "base"
    method: {distillation: 1.0, alpha: 2.0}
quirks:
  first: {what: "a", option: method.alpha, released: 2.0, otherwise: 1.0, source: "x"}
"""
VARIANT = """
extends: base
quick:
  - source: "variant"
    method: {distillation: 3.0}
paper:
  - source: "variant"
    method: {alpha: 5.0}
quirks:
  second: {what: "b", option: method.alpha, released: 2.0, otherwise: 1.0, source: "x"}
"""


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "variant.yaml"


def test_the_layers_of_the_extended_file_come_first(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, variant=VARIANT)
    assert [layer["source"] for layer in read_layers(path, "quick", MiBOptions)] == ["base", "variant"]
    assert [layer["source"] for layer in read_layers(path, "paper", MiBOptions)] == ["variant"]
    assert read_layers(path, "mini", MiBOptions) == []
    assert list(read_recipe_file(path)["quirks"]) == ["first", "second"]


def test_a_change_of_the_extended_file_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, variant=VARIANT)
    assert read_layers(path, "quick", MiBOptions)[0]["method"]["distillation"] == 1.0
    write(tmp_path, base=BASE.replace("distillation: 1.0", "distillation: 17.0"))
    assert read_layers(path, "quick", MiBOptions)[0]["method"]["distillation"] == 17.0


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ({"variant": VARIANT}, "there is no other file base.yaml beside it"),
        ({"variant": VARIANT.replace("extends: base", "extends: variant")}, "there is no other file variant.yaml"),
        ({"variant": VARIANT, "base": f"extends: more\n{BASE}"}, "unknown profile 'extends'"),
        ({"variant": VARIANT, "base": "quick: 3"}, "is no list"),
        ({"variant": VARIANT, "base": "quirks: [3]"}, "is no dict"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, texts: dict[str, str], fault: str) -> None:
    path = write(tmp_path, **texts)
    with pytest.raises(RecipeError, match=fault):
        read_recipe_file(path)


def test_ssul_m_has_the_recipe_of_ssul_and_its_own() -> None:
    setting = parse_setting("overlapped-15-1")
    base, variant = load_recipe(SSUL, setting, "paper"), load_recipe(SSULM, setting, "paper")
    assert variant.optim == base.optim
    assert variant.later == base.later
    assert variant.method == {**base.method, "memory": 100, "memory_labels": "unshifted"}
    names = {quirk.name for quirk in read_quirks(SSULM)}
    assert names == {quirk.name for quirk in read_quirks(SSUL)} | {"unshifted_memory_labels"}
