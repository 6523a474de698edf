"""``cispbench doctor``: what this machine has for a run, and what it lacks, each with what to do about it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from cispbench.harness.commands.options import DATA_ROOT, JSON, OUT, STEPS_DIR
from cispbench.harness.machine.devices import DRIVERS
from cispbench.harness.machine.environment import PACKAGES, describe_environment, emulates_bf16
from cispbench.harness.machine.progress import number_of
from cispbench.results.atomic import explain_os_error, write_atomic
from cispbench.splits.datasets import DATASETS
from cispbench.splits.errors import CispbenchError

GIB = 2**30
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 4 * GIB, 2 * GIB, GIB // 2
SHARED_MEMORY = Path("/dev/shm")  # Linux; macOS has no such folder and no such limit

HEAD_WIDTH = 24  # characters of state and topic

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class MachineCheck:
    """What was found for a ``topic``, and what to do. A ``problem`` stops every run; a ``note`` stops or slows some."""

    topic: str
    state: State
    text: str
    hint: str | None = None


def examine(data_root: Path | None, out: Path, steps_dir: Path) -> list[MachineCheck]:
    """Check software, machine, data, folders, weights and cluster; leave nothing behind, and open no data file.

    ``out`` and ``steps_dir``: the stores of records and of steps. Each is tried by writing and locking, in itself or in
    the folder it would be made in. Raises nothing: what goes wrong is part of the answer.
    """
    findings = [*_software()]
    # Without torch no device can be asked; without numpy no data can be looked for.
    sound = all(finding.state != "problem" for finding in findings)
    if sound:
        findings += _accelerators()
    findings += _machine()
    if sound:
        findings += [_data(name, data_root) for name in DATASETS.names()]
        findings += _plugins()
    findings += [_folder("records", out), _folder("steps", steps_dir), _weights(steps_dir / "weights")]
    if sound:
        findings.append(_paper_weights(steps_dir / "weights"))
    return [*findings, _cluster()]


def _software() -> Iterator[MachineCheck]:
    versions = describe_environment("cpu")
    yield MachineCheck("python", "ok", str(versions["python"]))
    for name in PACKAGES[1:]:  # the first is cispbench itself
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - builds that do not fit each other raise errors of any class
            lines = str(error).splitlines() or [type(error).__name__]
            hint = "Install versions that fit each other: pip install --upgrade torch torchvision timm."
            yield MachineCheck(name, "problem", f"{versions[name] or 'missing'}: cannot be imported: {lines[0]}", hint)
        else:
            yield MachineCheck(name, "ok", str(versions[name]))


def _accelerators() -> Iterator[MachineCheck]:
    import torch

    for number in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(number)
        except (RuntimeError, AssertionError) as error:
            text = f"cuda:{number} cannot be used: {str(error).partition('.')[0]}"
            yield MachineCheck("accelerator", "note", text, "Check that its driver works and fits this build of torch.")
        else:
            text = f"cuda:{number}, {properties.name}, {properties.total_memory / GIB:.0f} GiB"
            yield MachineCheck("accelerator", "ok", text)
    if torch.cuda.device_count():
        return
    if any(path.exists() for path in DRIVERS):
        hint = "Install a build of torch for this driver; see pytorch.org."
        yield MachineCheck("accelerator", "note", f"a driver is there, but torch {torch.__version__} sees no GPU", hint)
        return
    hint = "The profile paper needs one; quick and mini do not."
    yield MachineCheck("accelerator", "note", "none", hint)
    if emulates_bf16():
        yield MachineCheck(
            "precision", "note", "this processor has no bf16: ten times slower than fp32", "Keep fp32 on it."
        )


def _machine() -> Iterator[MachineCheck]:
    found = describe_environment("cpu")
    yield MachineCheck("processor", "ok", f"{found['cpu']}, {found['physical_cores']} cores")
    memory = int(str(found["memory_bytes"]))
    enough = memory >= LEAST_MEMORY
    hint = None if enough else f"Runs need {LEAST_MEMORY / GIB:.0f} GiB; see --micro-batch."
    yield MachineCheck("memory", "ok" if enough else "note", f"{memory / GIB:.1f} GiB", hint)
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        hint = None if size >= LEAST_SHARED else "Processes that load images pass them through it: use --workers 0."
        yield MachineCheck("shared memory", "note" if hint else "ok", f"{size / GIB:.1f} GiB", hint)


def _data(name: str, data_root: Path | None) -> MachineCheck:
    from cispbench.harness.data.source import list_data  # which needs numpy

    try:
        folder, pairs = list_data(name, data_root)
    except CispbenchError as error:  # no data there, or a package whose data set cannot be loaded
        return MachineCheck(f"data {name}", "note", error.message, error.hint)
    except OSError as error:
        found = explain_os_error("read", Path(error.filename or "data"), error)
        return MachineCheck(f"data {name}", "note", found.message, found.hint)
    counts = " and ".join(f"{len(ids)} {split}" for split, ids in pairs.items())
    hint = f"Compare it with the published lists: cispbench data check --dataset {name}."
    return MachineCheck(f"data {name}", "ok", f"{folder}, {counts} images", hint)


def _plugins() -> Iterator[MachineCheck]:
    from cispbench.harness.models.catalogue import MODELS
    from cispbench.harness.registry import METHODS

    for name, loaded in [*METHODS.load_each(), *MODELS.load_each()]:
        if isinstance(loaded, CispbenchError):
            yield MachineCheck(f"plug-in {name}", "note", loaded.message, loaded.hint)


def _folder(topic: str, path: Path) -> MachineCheck:
    """Try a folder in the way a run uses it: with an atomic write and a lock."""
    from cispbench.harness.machine.locks import run_lock

    try:
        with suppress(FileNotFoundError):  # no other error: a name too long, a folder that may not be looked into
            path.lstat()
        # lexists, because a broken link must be found here: it stands where the folder would be made.
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as scratch:
            write_atomic(Path(scratch) / "file", b"content")
            with run_lock(Path(scratch), "trying a lock", 0):
                pass
        free = shutil.disk_usage(there).free
    except CispbenchError as error:
        return MachineCheck(topic, "problem", error.message, error.hint)
    except OSError as error:
        found = explain_os_error("write in", path, error)
        return MachineCheck(topic, "problem", found.message, found.hint)
    hint = None if free >= LEAST_DISK else "Steps of the papers' models take up to half a GiB each: free some space."
    return MachineCheck(topic, "note" if hint else "ok", f"{path}, {free / GIB:.1f} GiB free", hint)


def _weights(folder: Path) -> MachineCheck:
    from cispbench.harness.models.weights_table import load_table

    table = load_table()
    there: list[str] = []
    with suppress(OSError):  # `_folder` has reported it for the folder above
        there = [name for name, entry in table.items() if (folder / entry.file_name).is_file()]
    if there:
        return MachineCheck("weights", "ok", f"{folder}: {', '.join(there)}")
    hint = "A run downloads those that it needs, where their checksum is published; --weights names a file or others."
    return MachineCheck("weights", "note", f"no pre-trained ones in {folder}", hint)


def _paper_weights(folder: Path) -> MachineCheck:
    """Look for what the example of every page, mbs, needs under the profile paper."""
    from cispbench.harness.models.catalogue import model_spec
    from cispbench.harness.models.weights_table import load_table
    from cispbench.harness.recipes.layers import resolve_recipe
    from cispbench.harness.registry import load_method
    from cispbench.splits.settings import parse_setting

    recipe = resolve_recipe(load_method("mbs"), parse_setting("overlapped-15-1"), "paper").recipe
    entry = load_table()[str(model_spec(recipe.model).weights)]
    path = folder / entry.file_name
    with suppress(OSError):  # `_folder` has reported it
        if path.is_file():
            return MachineCheck("paper with mbs", "ok", f"{entry.name} is there")
    text, offline = f"needs the weights {entry.name}", f"Without a network, save as {path}: {entry.url}"
    if entry.digits:
        return MachineCheck("paper with mbs", "note", f"{text}, which its first run downloads", offline)
    hint = f"No checksum of them is published, so that --weights {entry.name} has to allow the download. {offline}"
    return MachineCheck("paper with mbs", "note", text, hint)


def _cluster() -> MachineCheck:
    if shutil.which("sbatch") is None:
        return MachineCheck("cluster", "note", "no SLURM here", "Only `sweep --slurm` needs it.")
    if importlib.util.find_spec("submitit") is None:
        return MachineCheck("cluster", "note", "SLURM is here, submitit is not", 'pip install -e ".[slurm]"')
    return MachineCheck("cluster", "ok", "SLURM and submitit")


@click.command()
@DATA_ROOT
@OUT
@STEPS_DIR
@JSON
@click.pass_context
def doctor(context: click.Context, data_root: Path | None, out: Path, steps_dir: Path | None, as_json: bool) -> None:
    """Check what this machine has for a run, and what it lacks.

    It looks at software, machine, data, folders, weights and cluster. Exit code 1 if no run could succeed here.
    Nothing is downloaded, and nothing is left behind.

    \b
    Example:
      cispbench doctor
      cispbench doctor --data-root /data --steps-dir /scratch/steps
    """
    from cispbench.harness.runs.step_store import default_steps_dir

    findings = examine(data_root, out, steps_dir or default_steps_dir())
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        click.echo(json.dumps({"problems": len(problems), "findings": [asdict(finding) for finding in findings]}))
    else:
        click.echo("\n".join([*map(_line, findings), "", _summary(len(problems))]))
    context.exit(1 if problems else 0)


def _line(finding: MachineCheck) -> str:
    from cispbench.reports.tables.terminal import width

    texts = [finding.text] if finding.hint is None else [finding.text, finding.hint]
    lines = [
        line
        for text in texts
        for line in textwrap.wrap(text, width() - HEAD_WIDTH, break_long_words=False, break_on_hyphens=False)
    ]
    head = f"{finding.state:8} {finding.topic:14} "
    return head + f"\n{'':{HEAD_WIDTH}}".join(lines)


def _summary(problems: int) -> str:
    if problems:
        return f"{number_of(problems, 'problem')} to be solved before anything can run."
    return "Ready: cispbench run --method mbs --setting overlapped-100-10"
