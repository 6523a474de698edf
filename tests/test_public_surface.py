"""The public names: what README, docs and ``cispbench method new`` tell people to import, with their signatures.

``public_names.txt`` is the list. A change of it is a change that others have to follow: see ``docs/stability.md``.
``python tests/test_public_surface.py`` writes it anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import cispbench

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "public_names.txt"
PUBLIC = {
    "cispbench": ["__version__"],
    "cispbench.splits.settings": ["Setting", "Step", "list_settings", "parse_setting"],
    "cispbench.splits.selection": ["select_images"],
    "cispbench.splits.datasets": ["Dataset", "read_dataset"],
    "cispbench.splits.errors": [
        "CispbenchError", "DataError", "MethodError", "RecipeError", "RunError", "SettingError", "StoreError",
        "UsageError", "WeightsError",
    ],
    "cispbench.results.scores": ["Scores", "score"],
    "cispbench.results.ledger": ["lint_row", "load_reported"],
    "cispbench.results.store": ["Store"],
    "cispbench.results.record": ["StepRecord"],
    "cispbench.harness.method": [
        "VOID", "Batch", "Companion", "Exemplar", "Group", "Memory", "Method", "NoOptions", "Output", "Range",
        "StepContext",
    ],
    "cispbench.harness.wrapper": ["Wrapper", "WrapperOptions"],
    "cispbench.harness.models.interface": ["ClassGroup", "Encoder", "IncrementalModel"],
    "cispbench.harness.models.output": ["Features"],
    "cispbench.harness.models.catalogue": ["ModelSpec"],
    "cispbench.harness.models.deeplab": ["DeepLabV3"],
    "cispbench.harness.models.branches": ["BranchedDeepLabV3"],
    "cispbench.harness.models.head_branch": ["HeadBranch"],
    "cispbench.harness.models.segmenter": ["Segmenter"],
    "cispbench.harness.models.model_facts": ["wrong_facts"],
    "cispbench.harness.data.layout": ["Layout", "SplitFolders"],
    "cispbench.harness.data.decode": ["Pair"],
    "cispbench.harness.evaluate": ["confusion_matrix"],
    "cispbench.harness.pixel_bands": ["each_pixel", "sum_over_pixels"],
    "cispbench.harness.models.upsampling": ["upsample"],
    "cispbench.methods.losses": [
        "bce_with_ignore", "cross_entropy", "distillation", "labelled_pixels", "unbiased_cross_entropy",
        "unbiased_distillation",
    ],
    "cispbench.methods.lwf_mc": ["lwf_mc_loss"],
    "cispbench.methods.mib": ["balanced_init"],
    "cispbench.methods.plop": ["entropy", "entropy_thresholds", "local_pod_embedding", "pod_loss", "pseudo_labels"],
    "cispbench.methods.importance": ["normalise", "quadratic_penalty", "update_fisher"],
    "cispbench.methods.pi": ["extend_path", "path_importance"],
    "cispbench.methods.rw": ["extend_path", "path_importance"],
    "cispbench.methods.ewf": ["fuse", "fusion_weight"],
    "cispbench.methods.reminder": ["batch_prototypes", "class_similarity_distillation", "running_prototypes"],
    "cispbench.methods.rcil": ["pooled_cube"],
    "cispbench.harness.models.merging": ["merge_branches", "mix_branches"],
    "cispbench.methods.barm": ["join_heads", "prediction", "terms"],
    "cispbench.methods.mbs": [
        "adaptive_feature_distillation", "label_guided_output_distillation", "orthogonality", "patch_weights",
        "selective_pseudo_labels",
    ],
    "cispbench.methods.ssul": ["prediction", "presence", "pseudo_labels", "select_exemplars", "with_unknown"],
    "cispbench.methods.dkd": [
        "auxiliary", "balanced_memory", "candidate_labels", "classification", "decomposed_distillation",
        "decomposed_logits", "distillation", "memory_classification", "sigmoid_prediction",
    ],
}  # fmt: skip


def described() -> Iterator[str]:
    """Yield a line for each public name: its signature, its fields and the signatures of its public methods."""
    for module, names in PUBLIC.items():
        loaded = importlib.import_module(module)
        for name in names:
            yield from _lines(f"{module}.{name}", getattr(loaded, name))


def _lines(name: str, thing: object) -> Iterator[str]:
    if not callable(thing):
        yield f"{name}: {type(thing).__name__}"
    elif inspect.isclass(thing) and issubclass(thing, Exception):
        yield f"{name}({thing.__mro__[1].__name__})"
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield f"{name}.{field.name}: {field.type}"
        yield from _methods(name, thing)
    elif inspect.isclass(thing):
        yield f"{name}{inspect.signature(thing)}"
        yield from _methods(name, thing)
    else:
        yield f"{name}{inspect.signature(thing)}"


def _methods(name: str, kind: type) -> Iterator[str]:
    for key, value in sorted(vars(kind).items()):
        if key.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"{name}.{key} (property)"
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            yield f"{name}.{key}{inspect.signature(getattr(value, '__func__', value))}"


def test_public_names_and_their_signatures_stay() -> None:
    assert "\n".join(described()).splitlines() == LIST.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in PUBLIC[module]:
        if callable(getattr(loaded, name)):
            assert getattr(loaded, name).__doc__, f"{module}.{name} has no docstring"


def test_what_people_are_told_to_import_is_public() -> None:
    """Every import from cispbench in README, docs and the templates of ``method new`` names public things."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "harness/contract/templates").glob("*.txt")]
    pattern = re.compile(r"^\s*(?:>>> )?from (cispbench[\w.]*) import (.+)$", re.MULTILINE)
    for path in files:
        for module, names in pattern.findall(path.read_text(encoding="utf-8")):
            for name in names.strip("()").split(","):
                name = name.split(" as ")[0].strip()
                assert name in PUBLIC.get(module, ()), f"{path} imports {name} from {module}, which is not public"


def test_the_package_tells_its_version_and_loads_nothing_else() -> None:
    code = "import sys, cispbench; print(cispbench.__version__, [n for n in sys.modules if n.startswith('cispbench.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [version("cispbench"), "[]"]
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        _ = cispbench.versoin


def test_python_m_cispbench_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "cispbench", "--version"], capture_output=True, text=True, check=True)
    assert version("cispbench") in done.stdout


if __name__ == "__main__":
    LIST.write_text("\n".join(described()) + "\n", encoding="utf-8")
