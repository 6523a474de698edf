"""``--plan --on``: what a plan costs on named devices, as a user reads it; and ``run --plan``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.cost import measured
from cispbench.harness.sweep import price_showing

QUICK = ("--settings", "overlapped-15-5", "--profile", "quick")
PAPER = ("--settings", "overlapped-15-5", "--profile", "paper", "--model", "deeplabv3-resnet18")


def sweep(commands: Any, methods: str, *more: str) -> list[str]:
    return ["sweep", "--methods", methods, *more, "--plan", *commands.places()]


def priced(commands: Any, words: list[str]) -> dict[str, Any]:
    document = json.loads(commands.succeed([*words, "--json"]).stdout)
    price: dict[str, Any] = document["price"]
    return price


def test_a_sweep_has_a_row_for_each_method_and_one_in_all(commands: Any) -> None:
    text = commands.succeed(sweep(commands, "mib,plop", *QUICK, "--seeds", "0,1", "--on", "h100,a100")).stdout
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[-5:] == ["cost of", "step 0 of 2 methods", "mib", "plop", "in all"]
    assert "h100 hours" in text and "a100 hours" in text and "GiB a device" in text
    assert "An estimate." in text and text.count("(assumed).") == 2
    assert not commands.out.exists() and not commands.steps.exists()


def test_the_total_is_the_sum_and_shared_steps_cost_once(commands: Any) -> None:
    both = priced(commands, sweep(commands, "mib,plop", *QUICK, "--on", "h100"))
    rows = {row["name"]: row for row in both["rows"]}
    assert both["total"]["flops"] == pytest.approx(sum(row["flops"] for row in rows.values()))
    assert both["total"]["steps"] == 3
    seconds = both["total"]["device_seconds"]["h100"]
    assert seconds == pytest.approx(sum(row["device_seconds"]["h100"] for row in rows.values()))
    assert both["total"]["memory_bytes"] == max(row["memory_bytes"] for row in rows.values())
    apart = priced(commands, [*sweep(commands, "mib,plop", *QUICK, "--on", "h100"), "--no-share"])
    shared = rows["step 0 of 2 methods"]
    # Each trains its base, and tests it; shared, it is trained once and tested for both.
    assert apart["total"]["flops"] > both["total"]["flops"] + 0.9 * shared["flops"]


def test_the_papers_recipe_is_priced_without_its_data(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "network_speed", lambda *_: 1e11)
    price = priced(commands, sweep(commands, "mib", *PAPER, "--seeds", "0,1", "--on", "rtx4090,cpu"))
    (row,) = price["rows"]
    assert row["steps"] == 4
    assert row["device_seconds"]["cpu"] == pytest.approx(row["flops"] / 1e11)
    # TF32 at 30 % of 82.6 TFLOP/s: all but nothing of this network is convolutions.
    assert row["device_seconds"]["rtx4090"] == pytest.approx(row["flops"] / (0.3 * 82.6e12), rel=0.01)


def test_finished_steps_cost_nothing(swept: Any) -> None:
    text = swept.succeed(swept.sweep("finetune,mib", "--plan", "--on", "h100")).stdout
    assert text.splitlines()[-1] == "Nothing has to be trained or tested: it costs nothing."
    price = priced(swept, swept.sweep("finetune,mib", "--plan", "--on", "h100"))
    assert price["rows"] == [] and price["total"]["flops"] == 0


def test_what_is_trained_and_not_recorded_costs_its_test(swept: Any) -> None:
    price = priced(swept, swept.sweep("plop", "--plan", "--on", "h100"))
    assert [row["name"] for row in price["rows"]] == ["step 0", "step 1", "step 2"]
    base = price["rows"][0]
    assert base["memory_bytes"] == 0 and 0 < base["flops"] < price["rows"][1]["flops"]


def test_too_little_memory_is_a_warning_that_says_what_to_do(commands: Any) -> None:
    large = (*PAPER, "--set", "optim.batch=200", "--on", "h100,rtx4090")
    text = commands.succeed(sweep(commands, "mib", *large)).stdout
    (warning,) = [line for line in text.splitlines() if line.startswith("Warning: ") and "rtx4090" in line]
    assert "GiB for 200 images at once, and rtx4090 has 23 GiB: use --micro-batch" in warning
    assert "another result: batch norms see parts" in warning and "--devices" not in warning
    run = ["run", "--method", "mib", "--setting", *PAPER[1:], "--set", "optim.batch=200", "--plan", "--on", "rtx4090"]
    warning = commands.succeed([*run, *commands.places()]).stdout.splitlines()[-1]
    assert " or --devices " in warning
    small = commands.succeed(sweep(commands, "mib", *PAPER, "--set", "optim.batch=4", "--on", "h100,rtx4090")).stdout
    assert "Warning" not in small


def test_a_network_that_cannot_be_counted_is_named(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.models.deeplab import DeepLab

    features = DeepLab.features
    monkeypatch.setattr(DeepLab, "features", lambda self, images: features(self, images * float(images.mean())))
    words = sweep(commands, "mib", *QUICK, "--model", "deeplabv3-tiny", "--on", "h100")
    text = commands.succeed(words).stdout
    assert text.count("Warning: Not counted: the network deeplabv3-tiny cannot be counted") == 1


def test_a_run_has_a_row_for_each_step(commands: Any) -> None:
    words = ["run", "--method", "mib", "--setting", "overlapped-10-5", "--profile", "quick", *commands.places()]
    text = commands.succeed([*words, "--plan", "--on", "h100"]).stdout
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[-5:] == ["cost of", "step 0", "step 1", "step 2", "in all"]
    assert "1 run, 3 steps: 3 missing." in text
    assert not commands.out.exists() and not commands.steps.exists()


def test_the_plan_of_a_run_is_that_of_a_sweep_of_it(commands: Any) -> None:
    asked = ("--profile", "quick", "--micro-batch", "4", "--plan", "--json", *commands.places())
    run = json.loads(commands.succeed(["run", "--method", "mib", "--setting", "overlapped-15-5", *asked]).stdout)
    swept = json.loads(commands.succeed(["sweep", "--methods", "mib", "--settings", "overlapped-15-5", *asked]).stdout)
    assert run == swept and "price" not in run


def test_several_devices_share_the_memory_and_not_the_work(commands: Any) -> None:
    words = ["run", "--method", "mib", "--setting", *PAPER[1:], "--plan", "--on", "h100", *commands.places()]
    one, four = priced(commands, words), priced(commands, [*words, "--devices", "4"])
    assert one["total"]["flops"] == pytest.approx(four["total"]["flops"])
    assert four["total"]["memory_bytes"] < 0.4 * one["total"]["memory_bytes"]
    assert "Training time on 4 devices" in commands.succeed([*words, "--devices", "4"]).stdout


@pytest.mark.parametrize("words", [["sweep", "--methods", "mib", *QUICK],
                                   ["run", "--method", "mib", "--setting", "overlapped-15-5"]])  # fmt: skip
def test_wrong_words_are_refused_at_once(commands: Any, words: list[str]) -> None:
    unknown = commands.refused(2, [*words, "--plan", "--on", "h100,rtx4900", *commands.places()], "'rtx4900'")
    assert "Did you mean 'rtx4090'?" in unknown
    commands.refused(2, [*words, "--on", "h100", *commands.places()], "--on h100", "Add --plan.")


@pytest.mark.parametrize("option", [("--until", "0"), ("--compile",), ("--tf32",), ("--cudnn-benchmark",)])
def test_what_a_plan_of_a_run_has_no_use_for_is_refused(commands: Any, option: tuple[str, ...]) -> None:
    words = ["run", "--method", "mib", "--setting", "overlapped-15-5", "--profile", "quick", "--plan", *option]
    commands.refused(2, [*words, *commands.places()], f"{option[0]} does not go with --plan")


def test_without_devices_no_plan_imports_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import sys; from cispbench.harness.cli import main; sys.modules['torch'] = None; main()"
    run = ["run", "--method", "mib", "--setting", "overlapped-15-1", "--profile", "paper", "--plan"]
    done = subprocess.run([sys.executable, "-c", code, *run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 run, 6 steps: 6 unknown." in done.stdout
    # An unknown device is refused before anything is imported, too.
    done = subprocess.run([sys.executable, "-c", code, *run, "--on", "b100"], capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean" in done.stderr


@pytest.mark.parametrize(("value", "text"), [(24402.1, "24,402"), (10.4, "10"), (9.94, "9.9"), (0.0672, "0.067"),
                                             (0.00004, "0.000040"), (0.0, "0")])  # fmt: skip
def test_numbers_are_written_with_two_digits_and_without_an_exponent(value: float, text: str) -> None:
    assert price_showing.digits(value) == text
