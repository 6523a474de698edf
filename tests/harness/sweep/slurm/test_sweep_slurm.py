"""Sweeps on a cluster without one: the cluster file, chains of steps, notes, and SLURM's commands as scripts."""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.harness.sweep.graph import Node
from cispbench.harness.sweep.slurm.chains import group_steps
from cispbench.harness.sweep.slurm.cluster import Cluster, cluster_example, read_cluster
from cispbench.harness.sweep.slurm.notes import JobStep, SlurmNotes
from cispbench.splits.errors import StoreError, UsageError
from cispbench.splits.strict_yaml import parse_yaml

SETTING = "overlapped-10-5"
SCRIPTS = {
    "sbatch": '[ ! -e "$FAKE/refuses" ] || { cat "$FAKE/refuses" >&2; exit 1; }; echo "Submitted batch job 7"',
    "squeue": 'name=$(printf "%s\\n" "$@" | sed -n s/^--name=//p); sed "s/@/$name/" "$FAKE/queue"',
    "scontrol": "true",
    "scancel": "true",
    "srun": "true",
}


def write(folder: Path, text: str) -> Path:
    (folder / "cluster.yaml").write_text(text)
    return folder / "cluster.yaml"


def test_a_cluster_file_is_told_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    wrong = "partiton: dev\nmemory_gb: much\ngpus: 2\nqos: 3\nsetup: module load x\ntime_limit_min: 2\n"
    path = write(tmp_path, wrong + "signal_delay_s: 90\noptions: {time: 3, --exclude: node7, constraint: 1.5}\n")
    with pytest.raises(UsageError) as error:
        read_cluster(path)
    said = str(error.value)
    assert said.startswith(f"{path}:\n")
    assert "unknown key 'partiton'. Did you mean 'partition'?" in said
    assert "memory_gb is 'much', not a whole number." in said
    assert "gpus must be 0 or 1, not 2" in said
    assert "qos is 3, not text or null." in said
    assert "setup is 'module load x', not a list." in said
    assert "options.constraint is 1.5, not text or a whole number or true." in said
    assert "signal_delay_s 90 does not go with time_limit_min 2" in said
    assert "at least 5 minutes" in said


@pytest.mark.parametrize(
    ("minutes", "delay", "fits"), [(5, 90, True), (4, 90, False), (10, 240, True), (9, 240, False)]
)
def test_the_warning_comes_after_half_of_the_time_limit(tmp_path: Path, minutes: int, delay: int, fits: bool) -> None:
    path = write(tmp_path, f"time_limit_min: {minutes}\nsignal_delay_s: {delay}\n")
    if fits:
        assert read_cluster(path).signal_delay_s == delay
    else:
        with pytest.raises(UsageError, match="up to 60 s early"):
            read_cluster(path)


@pytest.mark.parametrize("option", ["time", "array", "--dependency", "cpus_per_task", "hold"])
def test_options_that_the_sweep_sets_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} is set by the sweep"):
        read_cluster(write(tmp_path, f"options: {{{option}: 1}}\n"))


def test_an_empty_file_has_the_defaults_and_the_example_names_every_field(tmp_path: Path) -> None:
    assert read_cluster(write(tmp_path, "")) == Cluster()
    example = read_cluster(write(tmp_path, cluster_example()))
    assert set(parse_yaml(cluster_example())) == set(Cluster.__dataclass_fields__)
    assert (example.partition, example.options, example.time_limit_min) == ("gpu", {"constraint": "a100"}, 240)
    assert cluster_example().count("\n# ") == len(Cluster.__dataclass_fields__)


def node(key: str, previous: str | None) -> Node:
    return Node(key, previous, 0, (), 1, 1, "missing", "", None, None)


def test_chains_end_where_steps_part_and_where_another_job_begins() -> None:
    parents = {"a": None, "b": "a", "c": "b", "d": "b", "e": "c", "f": "d", "g": "f", "z": "gone"}
    nodes = [node(key, previous) for key, previous in parents.items()]
    order = {key: index for index, key in enumerate("zgfedcba")}
    chains = group_steps(nodes, order)
    assert ["".join(link.key for link in chain) for chain in chains] == ["ab", "ce", "dfg", "z"]
    left = group_steps(nodes, order, {"a", "b", "f"})
    assert ["".join(link.key for link in chain) for chain in left] == ["ce", "d", "g", "z"]


@given(st.lists(st.integers(0, 100), max_size=40), st.sets(st.integers(0, 40)))
def test_every_step_is_in_one_chain_after_the_one_it_builds_on(parents: list[int], taken: set[int]) -> None:
    previous = [None if index == 0 or parent % (index + 1) == index else parent % index
                for index, parent in enumerate(parents)]  # fmt: skip
    nodes = [node(str(i), None if p is None else str(p)) for i, p in enumerate(previous)]
    elsewhere = {str(index) for index in taken}
    chains = group_steps(nodes, {entry.key: -index for index, entry in enumerate(nodes)}, elsewhere)
    placed = [link.key for chain in chains for link in chain]
    assert sorted(placed) == sorted({entry.key for entry in nodes} - elsewhere)
    for index, chain in enumerate(chains):
        for before, after in pairwise(chain):
            assert after.previous == before.key
            assert sum(entry.previous == before.key for entry in nodes) == 1
        first = chain[0].previous
        if first is not None and first not in elsewhere:
            assert first in [earlier[-1].key for earlier in chains[:index]]


def test_notes_come_back_as_they_were_written_and_broken_ones_are_named(tmp_path: Path) -> None:
    notes = SlurmNotes(tmp_path)
    made = notes.new(tmp_path / "out", [(JobStep("k", "a step", ("r",)),), (JobStep("l", "another", ()),)])
    later = notes.advance(notes.advance(made, "submitting", "12"), "released")
    assert (later.phase, later.jobs()[1].number) == ("released", "12_1")
    assert notes.submissions() == [later]
    (tmp_path / "slurm" / made.name / "note.json").write_text('{"name": "x"}')
    with pytest.raises(StoreError, match=f"squeue --name={made.name}"):
        notes.submissions()
    notes.remove(made)
    assert notes.submissions() == []
    assert notes.report("k", made.jobs()[0].task) is None


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands as scripts: they keep their calls in ``calls``, and squeue shows the file ``queue``."""
    pytest.importorskip("submitit")
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "queue").write_text("")
    for name, script in SCRIPTS.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "$FAKE/calls"\n{script}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    write(tmp_path, "poll_s: 1\ntime_limit_min: 10\narray_parallelism: 3\noptions: {constraint: a100}\n")
    return folder


def words(commands: Any, *more: str) -> list[str]:
    _, _, _, _, _, *rest = commands.tiny(method="finetune")
    cluster = ("--slurm", str(commands.home / "cluster.yaml"), "--device", "cpu")
    return ["sweep", "--methods", "finetune,mib", "--settings", SETTING, *cluster, *rest, *more]


def calls(fake: Path, command: str) -> list[str]:
    return [line for line in (fake / "calls").read_text().splitlines() if line.startswith(f"{command} ")]


def queue(*states: str) -> str:
    return "".join(f"@|7|{index}|{state}|None|\n" for index, state in enumerate(states))


def test_jobs_are_submitted_on_hold_and_one_that_leaves_no_result_has_failed(commands: Any, fake: Path) -> None:
    (fake / "queue").write_text(queue("TIMEOUT", "CANCELLED", "CANCELLED"))
    message = commands.invoke(words(commands)).stderr
    assert "submitted 3 jobs with 5 steps as 7" in message
    assert "its job 7_0 ended as TIMEOUT, without a result" in message
    assert f"not tried: finetune {SETTING} seed 0 step 1/2 failed" in message
    assert "5 steps failed or not tried" in message
    (script,) = commands.steps.glob("slurm/*/7_submission.sh")
    lines = script.read_text().splitlines()
    for option in ("hold", "requeue", "array=0-2%3", "kill-on-invalid-dep=yes", "constraint=a100", "signal=USR2@120"):
        assert f"#SBATCH --{option}" in lines
    assert calls(fake, "scontrol")[1:] == [
        "scontrol update JobId=7_1 Dependency=afterok:7_0",
        "scontrol update JobId=7_2 Dependency=afterok:7_0",
        "scontrol release 7",
    ]


def test_the_same_command_finds_its_jobs_and_submits_nothing(commands: Any, fake: Path) -> None:
    (fake / "queue").write_text(queue("FAILED", "CANCELLED", "CANCELLED"))
    commands.invoke(words(commands))
    (fake / "queue").write_text(queue("RUNNING", "PENDING", "PENDING"))
    process = commands.start(words(commands))
    commands.wait_for(process, "attached to 3 jobs on the cluster, with 5 of the steps")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    assert "the jobs on the cluster go on (3 jobs)" in commands.read()[1]
    assert len(calls(fake, "sbatch")) == 1
    status = json.loads(commands.succeed(["status", *commands.places(), "--json"]).stdout)
    assert [(entry["job"], entry["state"]) for entry in status["cluster"]] == [
        ("7_0", "submitted"), ("7_1", "submitted"), ("7_1", "submitted"), ("7_2", "submitted"), ("7_2", "submitted"),
    ]  # fmt: skip


def test_what_waits_for_a_failed_job_is_taken_out_and_submitted_anew(commands: Any, fake: Path) -> None:
    (fake / "queue").write_text(queue("FAILED", "PENDING", "PENDING"))
    process = commands.start(words(commands))
    commands.wait_for(process, "not tried: finetune")
    assert process.wait(60) == 1
    process = commands.start(words(commands), name="again")
    commands.wait_for(process, "submitted 3 jobs with 5 steps", name="again")
    assert process.wait(60) == 1
    assert calls(fake, "scancel") == ["scancel 7_1 7_2"]
    assert len(calls(fake, "sbatch")) == 2


def test_jobs_of_another_sweep_are_left_in_the_queue(commands: Any, fake: Path) -> None:
    (fake / "queue").write_text(queue("RUNNING", "PENDING", "PENDING"))
    process = commands.start(words(commands))
    commands.wait_for(process, "submitted 3 jobs")
    process.send_signal(signal.SIGINT)
    process.wait(60)
    elsewhere = [*words(commands), "--out", str(commands.home / "elsewhere")]
    process = commands.start(elsewhere, name="elsewhere")
    commands.wait_for(process, "submitted ", name="elsewhere")
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert calls(fake, "scancel") == []


def test_a_submission_that_broke_off_is_cancelled_and_made_again(commands: Any, fake: Path) -> None:
    broken = SlurmNotes(commands.steps).new(commands.out, [(JobStep("k", "a step", ()),)])
    (fake / "queue").write_text("@|7|N/A|PENDING|JobHeldUser|\n")
    (fake / "sbatch").write_text('#!/bin/sh\necho "sbatch" >> "$FAKE/calls"\n: > "$FAKE/queue"\necho job 8\n')
    assert "submitted 3 jobs" in commands.invoke(words(commands)).stderr
    assert calls(fake, "scancel") == [f"scancel --name={broken.name}"]
    assert not (commands.steps / "slurm" / broken.name / "note.json").exists()


def test_a_folder_that_slurm_would_misread_is_refused(commands: Any, fake: Path) -> None:
    commands.steps = commands.home / "100%j"
    commands.refused(2, words(commands), "100%j", "placeholder")
    assert not (fake / "calls").exists()
    assert not commands.out.exists()


def test_refusals_and_missing_commands_are_errors_that_say_so(
    commands: Any, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake / "refuses").write_text("sbatch: error: invalid partition specified: nope\n")
    message = commands.invoke(words(commands)).stderr
    assert "Error: sbatch refused the jobs: error: invalid partition specified: nope. Change partition" in message
    assert list(commands.steps.glob("slurm/*/note.json")) == []
    commands.refused(2, words(commands, "--workers", "2"), "--workers 2 is for this machine", "array_parallelism")
    commands.refused(2, [*words(commands), "--device", "cuda:3"], "--device cuda:3 does not go with gpus: 1")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install 'cispbench[slurm]'" in commands.invoke(words(commands)).stderr
    monkeypatch.setenv("PATH", "/nowhere")
    message = commands.invoke(words(commands)).stderr
    assert "--slurm needs SLURM's commands, and sbatch, srun, squeue, scontrol, scancel cannot be found" in message


def test_the_example_is_printed_without_a_sweep(commands: Any) -> None:
    assert commands.succeed(["sweep", "--slurm-example"]).stdout.rstrip("\n") == cluster_example()
