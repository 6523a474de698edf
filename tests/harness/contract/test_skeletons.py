"""``method new``: a new method of each kind keeps the contract as it is written."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import yaml

from cispbench.harness.commands.method import KINDS
from cispbench.harness.contract.bench import Sizes
from cispbench.harness.contract.check import check_method
from cispbench.harness.contract.skeleton import PARTS, write_skeleton
from cispbench.harness.method import Method
from cispbench.harness.wrapper import Wrapper
from cispbench.splits.errors import UsageError

SMALL = Sizes(setting="overlapped-10-10", grid=4, scenes=26, batch=4, iterations=2, learning=8)
OWN = {
    "memory": {"memory", "select_exemplars"},
    "companions": {"companions", "prepare"},
    "scores": {"scores"},
    "gradients": {"before_training", "after_gradients", "state_dict", "load_state_dict"},
    "phases": {"phases"},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def load(folder, name, parts=(), base=None):
    """Write a method, and return its class and its recipe."""
    _, _, path, recipe = write_skeleton(name, folder, parts, base)
    spec = importlib.util.spec_from_file_location(f"skeleton_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    compile(path.read_text(), str(path), "exec")
    return getattr(module, "".join(part.capitalize() for part in name.split("_"))), yaml.safe_load(recipe.read_text())


@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), tuple(PARTS)], ids="-".join)
def test_a_new_method_of_each_kind_keeps_the_contract(tmp_path, parts):
    cls, recipe = load(tmp_path, f"new_{len(parts)}_{parts[0]}", parts)
    own = set().union(*(OWN[part] for part in parts))
    hooks = {name for name in vars(cls) if callable(getattr(cls, name)) and hasattr(Method, name)}
    assert hooks - {"__init__", "Options", "__module__", "losses", "counts"} == own
    report = check_method(cls, ["deeplabv3-tiny"], SMALL)
    assert report.keeps, report.errors()
    assert ("phases" in recipe["quick"][0]) == ("phases" in parts)


def test_a_new_wrapper_keeps_the_contract(tmp_path):
    cls, recipe = load(tmp_path, "new_wrapper", base="mib")
    assert issubclass(cls, Wrapper) and cls.Options().base == "mib"
    report = check_method(cls, ["deeplabv3-tiny"], SMALL)
    assert report.keeps, report.errors()
    assert recipe["paper"][0]["method"] == {"distillation": 10.0}


def test_the_command_offers_every_kind():
    assert sorted(KINDS) == sorted(PARTS)


def test_a_wrapper_takes_no_parts_and_needs_a_base_that_exists(tmp_path):
    with pytest.raises(UsageError, match="do not go together"):
        write_skeleton("wrong", tmp_path, ["memory"], "mib")
    with pytest.raises(UsageError, match="unknown method 'mibb'"):
        write_skeleton("wrong", tmp_path, base="mibb")
    assert list(tmp_path.iterdir()) == []


def test_the_written_files_are_formatted(tmp_path):
    for name, parts, base in (("plain_one", (), None), ("full_one", tuple(PARTS), None), ("around_one", (), "mib")):
        for path in write_skeleton(name, tmp_path, parts, base):
            text = path.read_text()
            assert "$" not in text and text.endswith("\n") and not text.endswith("\n\n")
            assert "\n\n\n\n" not in text and max(map(len, text.splitlines())) <= 120
