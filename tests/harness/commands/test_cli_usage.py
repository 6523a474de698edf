"""Words the command line does not know: exit code 2, one message that says what to write instead, nothing written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

RUN = ("run", "--method", "mbs", "--setting", "overlapped-19-1")


def refused(commands: Any, words: list[str], *says: str) -> str:
    message: str = commands.refused(2, words, *says)
    assert list(commands.home.iterdir()) == []
    return message


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "mbss", "Did you mean 'mbs'?"),
        ("--setting", "overlaped-19-1", "Did you mean 'overlapped-19-1'?"),
        ("--setting", "overlapped-19-1-z", "a, b"),
        ("--setting", "overlapped-19_1", "Did you mean 'overlapped-19-1'?"),
        ("--setting", "", "<scenario>-<task>"),
        ("--setting", "overlapped-7-2", "fits no data set"),
        ("--setting", "voc:overlapped-100-50", "voc has 20 classes"),
        ("--setting", "overlapped-10-2", "Write 'voc:overlapped-10-2' or 'ade:overlapped-10-2'"),
        ("--setting", "partitioned-100-5", "partitioned-100-5-s0"),
        ("--profile", "minni", "Did you mean 'mini'?"),
        ("--model", "segmenter-tny", "Did you mean 'segmenter-tiny'?"),
        ("--weights", "resnet18-imagnet", "Did you mean 'resnet18-imagenet'?"),
        ("--device", "cdua", "Did you mean 'cuda'?"),
        ("--device", "cuda:x", "cuda:0"),
        ("--device", "cuda:99", "cpu"),
        ("--device", "cpu:7", "cpu"),
        ("--protocol", "strct", "Did you mean 'strict'?"),
        ("--seed", "-1", "--seed"),
        ("--seed", "one", "--seed"),
        ("--workers", "-2", "--workers"),
        ("--wait", "-1", "--wait"),
    ],
)
def test_an_unknown_value_is_named_with_what_to_write(commands: Any, option: str, value: str, says: str) -> None:
    assert value in refused(commands, commands.tiny(option, value), says)


def test_unknown_options_and_commands_are_named(commands: Any) -> None:
    refused(commands, commands.tiny("--sed", "1"), "--sed", "--seed")
    refused(commands, ["tabel"], "tabel")
    refused(commands, ["run", "--method", "mbs"], "--setting")
    refused(commands, ["show", "mbss"], "Did you mean 'mbs'?")
    refused(commands, ["show", "mbs", "--setting", "overlaped-15-1"], "Did you mean 'overlapped-15-1'?")
    refused(commands, ["show", "mbs", "--profile", "papr"], "Did you mean 'paper'?")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optim.lr", ["'optim.lr'", "section.key=value"]),
        ("=5", ["'=5'", "section.key=value"]),
        ("optim..lr=5", ["optim..lr", "section.key=value"]),
        ("optm.lr=5", ["optm", "Did you mean 'optim.lr'?"]),
        ("optim.ler=5", ["optim.ler", "Did you mean 'optim.lr'?"]),
        ("method.thresold=0.5", ["method.thresold", "Did you mean 'method.threshold'?"]),
        ("later.lrr=5", ["later.lrr", "Did you mean 'later.lr'?"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "number"]),
        ("optim.lr=", ["optim.lr", "None", "number"]),
        ("optim.nesterov=no", ["optim.nesterov", "'no'", "true or false"]),
        ("data.crop=[1]", ["data.crop", "[1]", "whole number"]),
        ("data.crop=32.5", ["data.crop", "32.5", "whole number"]),
        ("data.resize=scael", ["data.resize", "'scael'", "Did you mean 'scale'?"]),
        ("method.threshold=high", ["method.threshold", "'high'", "number"]),
        ("later.lr=fast", ["later.lr", "'fast'", "number"]),
        ("optim=5", ["optim", "5", "mapping"]),
        ("method=5", ["method", "5", "mapping"]),
        ("later=5", ["later", "5"]),
        ("model=segmenter-tny", ["segmenter-tny", "segmenter-tiny"]),
        ("optim.lr={", ["optim.lr", "{"]),
    ],
)
def test_an_override_that_the_recipe_does_not_know(commands: Any, change: str, says: list[str]) -> None:
    refused(commands, commands.tiny("--set", change), *says)
    refused(commands, ["show", "mbs", "--profile", "mini", "--model", "segmenter-tiny", "--set", change], *says)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", "-1"),
        ("optim.lr", ".nan"),
        ("optim.batch", "0"),
        ("optim.iterations", "-1"),
        ("optim.momentum", "-0.5"),
        ("optim.weight_decay", "-1"),
        ("optim.clip", "-1"),
        ("optim.warmup", "-3"),
        ("later.lr", "-1"),
        ("data.crop", "-1"),
        ("data.crop", "0"),
        ("data.scale", "[1]"),
        ("data.scale", "[2, 1]"),
        ("data.ratio", "[1]"),
        ("data.flip", "2"),
        ("data.pad_label", "999"),
        ("data.resize_short", "0"),
        ("evaluation.batch", "0"),
        ("evaluation.crop", "0"),
        ("evaluation.resize_short", "-5"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_training(commands: Any, key: str, value: str) -> None:
    name, number = key.partition(".")[2], re.search(r"-?[0-9]+|nan", value)
    assert number is not None
    refused(commands, commands.tiny("--set", f"{key}={value}"), name, number[0])


def test_later_iterations_take_the_place_of_epochs_as_those_of_optim_do(commands: Any) -> None:
    words = ["show", "mib", "--profile", "mini", "--json"]
    both = ["--set", "optim.iterations=2", "--set", "later.iterations=2"]
    recipe = json.loads(commands.succeed([*words, *both]).stdout)
    assert (recipe["optim"]["iterations"], recipe["later"]["iterations"]) == (2, 2)
    assert recipe["optim"]["epochs"] is None and recipe["later"].get("epochs") is None


@pytest.mark.parametrize("more", [["--set", "optim.ler=5"], ["--model", "segmenter-tny"], ["--weights", "nonsense"]])
def test_a_run_that_is_refused_is_not_announced_first(commands: Any, more: list[str]) -> None:
    tiny = ["--set", "optim.iterations=1", "--set", "later.iterations=1"]
    result = commands.invoke([*RUN, *tiny, *commands.places(), *more])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


def test_another_model_by_set_is_the_same_as_by_model_or_is_refused(commands: Any) -> None:
    words, other = ["show", "mbs", "--profile", "paper", "--json"], "deeplabv3-resnet101"
    result = commands.invoke([*words, "--set", f"model={other}"])
    if result.exit_code == 2:
        assert "--model" in result.stderr
    else:
        # The recipe of one family of models is no recipe for another.
        assert json.loads(result.stdout) == json.loads(commands.succeed([*words, "--model", other]).stdout)


def test_data_that_would_be_ignored_are_refused(commands: Any) -> None:
    words = [*RUN, "--profile", "quick", "--data-root", str(commands.data), *commands.places()]
    refused(commands, words, "quick", str(commands.data), "--profile mini")


def test_lists_have_names_and_parse(commands: Any) -> None:
    refused(commands, ["list", "nonsense"], "'nonsense'", "settings")
    refused(commands, ["list", "methds"], "Did you mean 'methods'?")
    for what in ("methods", "settings", "models", "profiles", "protocols", "weights"):
        rows = json.loads(commands.succeed(["list", what, "--json"]).stdout)
        names = [next(iter(row.values())) for row in rows]
        assert len(set(names)) == len(names) > 2
        assert all(name in commands.succeed(["list", what]).stdout for name in names)
    assert json.loads(commands.succeed(["show", "plop", "--json"]).stdout)["model"] == "deeplabv3-resnet101"


def test_the_table_of_an_empty_store_says_so(commands: Any) -> None:
    commands.out.mkdir()
    words = ["table", "--out", str(commands.out)]
    assert f"No finished runs in {commands.out}" in commands.succeed(words).stdout
    assert json.loads(commands.succeed([*words, "--json"]).stdout) == []


def test_the_table_of_a_store_that_does_not_exist_is_an_error(commands: Any) -> None:
    for more in ([], ["--json"]):
        message = commands.refused(1, ["table", "--out", str(commands.home / "reslts"), *more], "reslts")
        assert "does not exist" in message


def test_the_table_knows_its_protocol_whatever_the_store_holds(commands: Any) -> None:
    refused(commands, ["table", "--out", str(commands.out), "--protocol", "strct"], "Did you mean 'strict'?")


def test_a_file_in_the_place_of_a_folder_is_named(commands: Any) -> None:
    file = commands.home / "file"
    file.write_text("here")
    commands.refused(2, ["table", "--out", str(file)], str(file))
    commands.refused(2, commands.tiny("--out", str(file)), str(file))
    assert [path.name for path in commands.home.iterdir()] == ["file"]


def test_windows_is_refused_in_plain_words_although_it_lacks_modules() -> None:
    script = """
import sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
from cispbench.harness.cli import main
sys.platform = "win32"
main(["list", "methods"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: cispbench runs on Linux and macOS") and "WSL 2" in done.stderr
