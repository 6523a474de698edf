"""`cispbench check` as its user meets it: exit codes, streams, and the baselines that come with cispbench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cispbench.harness.sweep.matrix import read_sweep_file
from cispbench.results.baselines_files import COMMITTED, read_baselines
from cispbench.results.checked_json import read_checked, write_checked

SWEEP = COMMITTED / "sweeps" / "quick.yaml"


def small(commands: Any, folder: Path, *more: str) -> list[str]:
    return ["check", "--out", str(commands.out), "--baselines", str(folder), *more]


def test_from_the_first_baseline_to_the_exit_codes(swept: Any, commands: Any) -> None:
    commands.out, folder = swept.out, commands.home / "baselines"
    commands.refused(1, small(commands, folder), str(folder), "--baselines")
    commands.refused(2, small(commands, folder, "--update"), "--update needs a reason")
    commands.refused(2, small(commands, folder, "--reason", "x"), "go with --update")
    told = commands.succeed(small(commands, folder, "--update", "--reason", "first", "--machine", "1")).stdout
    path = folder / "mini-mini.json"
    assert f"Written: {path}" in told and "2 ok." in told
    told = commands.succeed(small(commands, folder, "--update", "--reason", "again")).stdout
    assert f"Unchanged: {path} (no figure differs)" in told
    assert commands.succeed(small(commands, folder)).stdout.endswith("2 ok.\n")
    content = read_checked(path)
    for cell in content["cells"]:
        for name in ("old", "new", "all"):
            cell[name]["mean"] = 90.0
    write_checked(path, content)
    result = commands.invoke(small(commands, folder))
    assert result.exit_code == 1 and result.stdout.endswith("2 worse.\n")
    result = commands.invoke(small(commands, folder, "--json"))
    assert result.exit_code == 1 and json.loads(result.stdout)["counts"]["worse"] == 2
    assert commands.succeed(small(commands, folder, "--tolerance", "95")).stdout.endswith("2 ok.\n")
    for cell in content["cells"]:
        cell["recipe"] = "another"
    write_checked(path, content)
    result = commands.invoke(small(commands, folder))
    assert result.exit_code == 1 and "nothing was compared" in result.stderr and "--allow-empty" in result.stderr
    told = commands.succeed(small(commands, folder, "--allow-empty")).stdout
    assert told.endswith("2 missing, 2 no reference.\n")
    assert commands.invoke(small(commands, folder, "--complete")).exit_code == 1
    commands.refused(2, small(commands, folder, "--method", "mip"), "Did you mean 'mib'?")
    commands.refused(2, small(commands, folder, "--protocol", "strikt"), "'strict'")
    commands.refused(1, ["check", "--out", str(commands.home / "none")], "does not exist")


def test_the_committed_baselines_are_of_the_committed_sweep() -> None:
    (found,) = read_baselines(COMMITTED)
    asked = read_sweep_file(SWEEP)
    assert (found.kind, found.profile) == ("synthetic", asked.profile)
    assert {cell.method for cell in found.cells} == set(asked.methods or ())
    assert {cell.setting for cell in found.cells} == set(asked.settings or ())
    assert all(set(asked.seeds or ()) <= set(cell.seeds) for cell in found.cells)
    assert "results/baselines/sweeps/quick.yaml" in found.command
    assert found.history and all(change.reason for change in found.history)
    # Wide enough for another processor, narrow enough for a fault: a method broken on purpose loses far more.
    assert 0 < found.machine <= 5
