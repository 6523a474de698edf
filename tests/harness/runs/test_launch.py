"""From the command line's words to a run: profiles, weights, and methods that decline."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from cispbench.harness.cli import main
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.weights_table import WeightsEntry
from cispbench.harness.runs import weights_choice
from cispbench.harness.runs.weights_choice import check_weights, choose_weights
from cispbench.methods.mbs import MBS
from cispbench.splits.errors import UsageError, WeightsError

TINY = ["--set", "optim.iterations=2", "--set", "later.iterations=1"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("CISPBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str):
        return CliRunner().invoke(main, ["run", *words, "--out", "out", "--steps-dir", "steps"])

    return invoke


def test_without_data_the_run_says_that_it_uses_synthetic_scenes_and_where_it_looked(run):
    result = run("--method", "mbs", "--setting", "overlapped-19-1", *TINY)
    assert result.exit_code == 0, result.output
    for words in ("No PASCAL VOC 2012 found", "CISPBENCH_DATA: not set", "./data", "NOT comparable", "--data-root"):
        assert words in result.stderr
    assert "NOT comparable with published ones" in result.stdout
    again = run("--method", "mbs", "--setting", "overlapped-19-1", *TINY)
    assert "finished before" in again.stdout


@pytest.mark.parametrize(("emulates", "precision"), [(True, "bf16"), (False, "bf16"), (True, "fp32")])
def test_a_precision_that_costs_time_on_this_processor_is_told(run, monkeypatch, emulates, precision):
    def train_nothing(plan, options):
        raise UsageError("that is all.")

    monkeypatch.setattr("cispbench.harness.runs.launch.emulates_bf16", lambda: emulates)
    monkeypatch.setattr("cispbench.harness.runs.launch.execute", train_nothing)
    told = run("--method", "joint", "--setting", "overlapped-15-5", "--set", f"optim.precision={precision}")
    assert "that is all." in told.stderr
    assert ("this processor has no bf16 arithmetic" in told.stderr) == (emulates and precision == "bf16")


def test_json_is_one_document_with_every_step(run):
    result = run("--method", "joint", "--setting", "overlapped-15-5", "--profile", "quick", "--json", *TINY)
    document = json.loads(result.stdout)
    assert (document["method"], document["data"], len(document["steps"])) == ("joint", "synthetic", 1)


def test_a_method_that_declines_says_why(run, monkeypatch):
    monkeypatch.setattr(MBS, "unsupported", lambda self, setting, model: f"{model} has no class tokens.")
    result = run("--method", "mbs", "--setting", "overlapped-19-1", "--profile", "quick")
    assert result.exit_code == 2  # a method, setting or network that do not go together: wrong usage
    assert "mbs cannot run overlapped-19-1 with segmenter-tiny: segmenter-tiny has no class tokens." in result.stderr


def test_real_data_profiles_do_not_fall_back(run):
    result = run("--method", "mbs", "--setting", "overlapped-19-1", "--profile", "mini")
    assert result.exit_code == 1
    assert "JPEGImages" in result.stderr or "VOC2012" in result.stderr


def test_a_random_start_is_never_an_accident(tmp_path):
    assert choose_weights("none", "segmenter-tiny", tmp_path, named=False).random
    with pytest.raises(WeightsError, match="no pre-trained weights for segmenter-tiny"):
        check_weights("pretrained", "segmenter-tiny")
    with pytest.raises(UsageError, match="Did you mean 'resnet18-imagenet'"):
        check_weights("resnet18-imagenett", "deeplabv3-resnet18")
    with pytest.raises(WeightsError, match="there is no such file"):
        check_weights("folder/net.pth", "deeplabv3-resnet18")


def test_named_weights_are_fetched_checked_loaded_and_bring_their_normalisation(tmp_path, monkeypatch):
    donor = build_model("deeplabv3-resnet18", 64).encoder.net
    file = tmp_path / "donor.pth"
    torch.save({**donor.state_dict(), "fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, file)
    digits = weights_choice.file_sha256(file)
    entry = WeightsEntry(
        name="resnet18-imagenet", url=file.as_uri(), architecture="resnet18", normalise="half", source="a test",
        licence="none", sha256=digits,
    )  # fmt: skip
    for module in ("cispbench.harness.runs.weights_choice", "cispbench.harness.models.weights_download"):
        monkeypatch.setattr(f"{module}.load_table", lambda path=None: {entry.name: entry})
    choice = choose_weights("pretrained", "deeplabv3-resnet18", tmp_path / "weights", named=False)
    assert (choice.label, choice.sha256, choice.normalise) == ("resnet18-imagenet", digits, "half")
    fresh = build_model("deeplabv3-resnet18", 64)
    assert choice.load is not None
    choice.load(fresh)
    assert torch.equal(fresh.encoder.net.conv1.weight, donor.conv1.weight)
