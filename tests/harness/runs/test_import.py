"""Checkpoints of released code become steps that can be evaluated and trained further."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.models import released
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.released import ABN_EPSILON, load_released, translate
from cispbench.harness.models.weight_files import read_state
from cispbench.splits.errors import WeightsError

SETTING = "overlapped-19-1"
CROP = ["--set", "data.crop=48", "--set", "data.resize_short=48", "--set", "evaluation.resize_short=48"]


def released_deeplab(model: Any, in_place: bool) -> dict[str, Tensor]:
    """Name the state of one of our networks as the release does; in-place ABN has negative scales and no counters."""
    state = {}
    for key, value in model.state_dict().items():
        name = key.replace("downsample.0", "proj_conv").replace("downsample.1", "proj_bn")
        for stage in range(1, 5):
            for block in range(30):
                old = f"encoder.net.layer{stage}.{block}."
                if name.startswith(old):
                    inner = name.removeprefix(old)
                    middle = "" if inner.startswith("proj") else "convs."
                    name = f"body.mod{stage + 1}.block{block + 1}.{middle}{inner}"
        name = name.replace("encoder.net.", "body.mod1.").replace("classifiers.", "cls.")
        if in_place and name.endswith("num_batches_tracked"):
            continue
        is_scale = name.endswith(".weight") and value.ndim == 1
        state[f"module.{name}"] = -(value - ABN_EPSILON) if in_place and is_scale else value.clone()
    return state


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    model = build_model("deeplabv3-resnet18", 48)
    model.grow(20)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model.eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code bases fill small models as well."""
    table = released._table()
    for name, model in (("mib", "deeplabv3-resnet18"), ("plop", "deeplabv3-resnet18"), ("mbs", "segmenter-vit-ti16")):
        monkeypatch.setitem(table[name], "models", [model])


@pytest.fixture
def checkpoint(tmp_path: Path, network: Any) -> Path:
    """A file as MiB writes it: the state one level down, ``module.`` before each name, in-place ABN's scales."""
    path = tmp_path / "19-1-voc_MiB_0.pth"
    torch.save({"epoch": 29, "model_state": released_deeplab(network, True), "best_score": np.mean([0.5, 0.9])}, path)
    return path


@pytest.mark.parametrize("in_place", [True, False])
def test_a_released_state_computes_what_ours_did(network: Any, in_place: bool) -> None:
    state = {key.removeprefix("module."): value for key, value in released_deeplab(network, in_place).items()}
    translated = translate(state, "abn-deeplab", "a file")
    assert (translated.groups, translated.in_place_abn) == ((20,), in_place)
    copy = build_model("deeplabv3-resnet18", 48)
    load_released(copy, translated, "a file")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(copy.eval()(images).logits, network(images).logits, rtol=1e-4, atol=1e-4)


def test_the_sign_of_in_place_abns_scale_is_dropped(network: Any) -> None:
    state = {key.removeprefix("module."): value for key, value in released_deeplab(network, True).items()}
    assert bool((state["body.mod1.bn1.weight"] < 0).all())
    scale = translate(state, "abn-deeplab", "a file").state["encoder.net.bn1.weight"]
    torch.testing.assert_close(scale, state["body.mod1.bn1.weight"].abs() + 1e-5, rtol=0, atol=0)


def test_a_segmenters_position_embedding_is_fitted_and_its_imagenet_head_left_out() -> None:
    torch.manual_seed(0)
    model = build_model("segmenter-vit-ti16", 96)
    for classes in (20, 1):
        model.grow(classes)
    state = {key.replace("encoder.vit.", "encoder."): value for key, value in model.state_dict().items()}
    state |= {"encoder.head.weight": torch.zeros(1000, 192), "encoder.head.bias": torch.zeros(1000)}
    translated = translate(state, "segmenter", "a file")
    assert translated.groups == (20, 1)
    larger = build_model("segmenter-vit-ti16", 128)
    load_released(larger, translated, "a file")
    assert larger.num_classes == 21
    assert larger.encoder.vit.pos_embed.shape[1] == 1 + 8 * 8


def test_a_file_of_another_code_base_is_named(tmp_path: Path, network: Any) -> None:
    with pytest.raises(WeightsError, match=r"no classifier of the layout segmenter.*encoder\.net\.conv1"):
        translate(network.state_dict(), "segmenter", "a file")


@pytest.mark.usefixtures("small")
def test_an_imported_step_is_evaluated_and_trained_further(commands: Any, checkpoint: Path) -> None:
    def run(*more: str) -> Any:
        changes = ["--set", "optim.batch=4", "--set", "later.epochs=null", "--set", "later.iterations=2"]
        return commands.succeed(
            ["run", "--method", "mib", "--setting", SETTING, "--profile", "mini", "--model", "deeplabv3-resnet18",
             "--data-root", str(commands.data), *commands.places(), *CROP, *changes, "--json", *more]
        )  # fmt: skip

    words = ["import", "checkpoint", str(checkpoint), "--from", "mib", "--setting", SETTING, "--crop", "48"]
    words += ["--steps-dir", str(commands.steps)]
    said = commands.succeed(words).stdout
    assert "step 0/1 of overlapped-19-1" in said
    assert "in-place ABN" in said
    key = json.loads(commands.succeed([*words, "--json"]).stdout)["key"]
    first = json.loads(run("--start-from", key[:12], "--until", "0").stdout)
    assert [step["key"] for step in first["steps"]] == [key]
    assert first["trained"] == 0
    both = json.loads(run("--start-from", key[:12]).stdout)
    assert (both["trained"], len(both["steps"])) == (1, 2)
    record = json.loads(commands.records()[1].read_text())
    assert record["previous_key"] == key
    assert record["model"]["weights"] == "imported:mib"
    again = json.loads(run("--start-from", key[:12]).stdout)
    assert again["trained"] == 0
    # Damaged, it is neither trained anew nor gone on from; imported again, it is sound.
    again_words = words
    with (commands.steps / "steps" / key / "weights.safetensors").open("ab") as file:
        file.write(b"0")
    words = ["run", "--method", "mib", "--setting", SETTING, "--profile", "mini", "--model", "deeplabv3-resnet18"]
    words += ["--data-root", str(commands.data), *CROP, "--start-from", key[:12], "--seed", "1"]
    words += ["--out", str(commands.home / "other"), "--steps-dir", str(commands.steps)]
    commands.refused(1, words, f"the imported step {key[:10]} is missing or damaged", "Import its checkpoint again.")
    commands.succeed(again_words)
    assert [path.name for path in commands.steps.glob("steps/*.damaged-*")] == [f"{key}.damaged-0"]
    commands.succeed([*words, "--until", "0"])


@pytest.mark.usefixtures("small")
def test_a_later_step_is_evaluated_by_the_command_that_the_import_prints(
    commands: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 of 19-1, its last: two classifiers, imported for another crop into another store than the usual."""
    model = build_model("deeplabv3-resnet18", 48)
    for classes in (20, 1):
        model.grow(classes)
    path = tmp_path / "step1.pth"
    torch.save({"model_state": released_deeplab(model, True)}, path)
    words = ["import", "checkpoint", str(path), "--from", "mib", "--setting", SETTING, "--crop", "48"]
    said = commands.succeed([*words, "--model", "deeplabv3-resnet18", "--steps-dir", str(commands.steps)]).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("Evaluate it:")]
    printed = line.partition("cispbench ")[2].replace("FOLDER", str(commands.data)).split()
    view = ["--set", "data.resize_short=48", "--set", "evaluation.resize_short=48", "--profile", "mini"]
    commands.succeed([*printed, *view, "--out", str(commands.out)])
    (record,) = [json.loads(place.read_text()) for place in commands.records().values()]
    assert (record["step"], record["steps"], record["quirks"]) == (1, 2, [])
    assert "mib" in commands.succeed(["table", "--out", str(commands.out), "--protocol", "mbs24"]).stdout
    commands.refused(2, [*printed, *view, "--until", "0"], "the run starts at step 1")
    joint = ["joint" if word == "mib" else word for word in printed]
    commands.refused(2, [*joint, *view], "joint learns all classes in a single step")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"module.cls.0.weight": torch.full((20, 256, 1, 1), float("nan"))}, "cls.0.weight holds values that are not"),
        ({"module.cls.0.bias": torch.zeros(20, dtype=torch.int64)}, "cls.0.bias holds torch.int64"),
        ({"module.cls.2.bias": torch.zeros(1)}, "group 2 but not of group 1"),
        ({"cls.0.bias": torch.zeros(20)}, "twice, with and without `module.`"),
    ],
)
@pytest.mark.usefixtures("small")
def test_a_spoilt_file_is_refused_by_the_name_of_what_is_wrong(
    commands: Any, tmp_path: Path, network: Any, change: dict[str, Tensor], says: str
) -> None:
    path = tmp_path / "spoilt.pth"
    torch.save(released_deeplab(network, True) | change, path)
    words = ["import", "checkpoint", str(path), "--from", "mib", "--setting", SETTING, "--crop", "48"]
    commands.refused(1, [*words, "--steps-dir", str(commands.steps)], "spoilt.pth", says)


def test_numpys_scalars_are_read_under_both_names_of_their_module(tmp_path: Path) -> None:
    """As numpy before 2.0 pickled them and as it does now; both are in released files."""
    path = tmp_path / "new.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "best_score": np.float64(0.5)}, path)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name.replace("new/", "old/"), content)
    for place in (path, old):
        assert set(read_state(place)) == {"a"}


@pytest.mark.usefixtures("small")
def test_what_does_not_fit_is_refused(commands: Any, checkpoint: Path) -> None:
    def words(*more: str) -> list[str]:
        return ["import", "checkpoint", str(checkpoint), "--steps-dir", str(commands.steps), "--crop", "48", *more]

    commands.refused(2, words("--from", "mip", "--setting", SETTING), "'mip' cannot be imported", "Did you mean 'mib'")
    commands.refused(
        1, words("--from", "mib", "--setting", "overlapped-15-5"), "20 classes", "has 16", "Name the setting"
    )
    commands.refused(1, words("--from", "mbs", "--setting", SETTING), "no classifier", "--from the code base")
    commands.refused(2, words("--from", "mib", "--setting", SETTING, "--model", "segmenter-tiny"), "do not fit")
    run = ["run", "--method", "mib", "--setting", SETTING, "--profile", "mini", "--data-root", str(commands.data)]
    run += [*commands.places(), *CROP]
    commands.refused(2, [*run, "--start-from", "abc"], "no step in", "import checkpoint")
    commands.succeed(words("--from", "mib", "--setting", SETTING))
    (key,) = [path.parent.name for path in commands.steps.glob("steps/*/manifest.json")]
    commands.refused(2, [*run, "--start-from", key], "deeplabv3-mobilenetv2", "--model deeplabv3-resnet18")
    commands.refused(2, [*run, "--start-from", key, "--weights", "none"], "would be ignored")
    other = [word.replace(SETTING, "overlapped-15-5") for word in run]
    commands.refused(
        2,
        [*other, "--model", "deeplabv3-resnet18", "--start-from", key],
        "it has learnt 19 classes",
        "not the 15 of overlapped-15-5",
    )
    commands.refused(2, [*run, "--until", "2"], "the last step of overlapped-19-1 is 1")


class _Payload:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.ran,)


def test_a_pickle_with_code_is_refused_and_not_run(commands: Any, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model_state": {"cls.0.bias": _Payload(ran)}}, path, pickle_module=pickle)
    words = [
        "import",
        "checkpoint",
        str(path),
        "--from",
        "mib",
        "--setting",
        SETTING,
        "--steps-dir",
        str(commands.steps),
    ]
    commands.refused(1, words, "evil.pth", "is not run")
    assert not ran.exists()
