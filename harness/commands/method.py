"""``cispbench method``: check methods, built-in and third-party ones, against the contract; begin a new one."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cispbench.harness.contract.verdict import ContractReport

KINDS = ("memory", "companions", "scores", "gradients", "phases")


@click.group()
def method() -> None:
    """Check methods against the contract, or begin a new one."""


@method.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Check every installed method.")
@click.option("--model", help="Check with this model instead of a tiny one of each family; a large one takes long.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts: a list with one report for each method.")
def check(names: tuple[str, ...], every: bool, model: str | None, as_json: bool) -> None:
    """Check methods against the contract, in a minute each.

    It trains them shortly on synthetic scenes, on a CPU. It prints one line for each rule. For a broken rule it
    says what was found, where, and what to do (exit code 1).

    \b
    Example:
      cispbench method check mib
      cispbench method check --all --json
    """
    from cispbench.harness.contract.check import check_method
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.models.catalogue import model_spec
    from cispbench.harness.registry import METHODS, load_method, method_names
    from cispbench.splits.errors import CispbenchError, MethodError, UsageError

    if bool(names) == every:
        raise UsageError("name the methods to check, or say --all.", hint="Known: " + ", ".join(method_names()) + ".")
    models = None if model is None else (model_spec(model).name,)
    loaded = dict(METHODS.load_each()) if every else {name: load_method(name) for name in names}
    classes = [cls for cls in loaded.values() if not isinstance(cls, CispbenchError)]
    reports = []
    with make_view(quiet=as_json) as view:
        for cls in classes:
            reports.append(check_method(cls, models, progress=partial(view.counting, f"checking {cls.name}")))
            if not as_json:
                click.echo(_as_text(reports[-1]))
    if as_json:
        click.echo(json.dumps([report.as_dict() for report in reports]))
    # Raised after all reports: a broken method must not hide those that come after it.
    errors = [str(broken) for broken in loaded.values() if isinstance(broken, CispbenchError)]
    errors += [line for report in reports for line in report.errors()]
    if errors:
        raise MethodError("\n".join(errors))


def _as_text(report: ContractReport) -> str:
    from cispbench.harness.contract.check import RULES
    from cispbench.reports.tables.terminal import table_text

    lines = []
    if report.results:
        lines += [table_text(["rule", "result", "note"], report.rows(), terminal=sys.stdout.isatty()), ""]
    lines += [f"not checked with {model}: {reason}" for model, reason in report.unsupported.items()]
    if report.keeps:
        lines.append(f"{report.method} keeps the contract ({len(RULES)} rules, {report.seconds:.0f} s)")
    elif report.broken:
        lines.append(f"{report.method} breaks {', '.join(report.broken)} ({report.seconds:.0f} s)")
    return "\n".join([*lines, ""])


@method.command()
@click.argument("name")
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), show_default=True,
              help="Where the new folder goes.")  # fmt: skip
@click.option("--with", "parts", multiple=True, type=click.Choice(KINDS),
              help="Begin with this mechanism, too; several are possible.")  # fmt: skip
@click.option("--wraps", "base", metavar="METHOD", help="Change another method, for example mib, instead.")
def new(name: str, folder: Path, parts: tuple[str, ...], base: str | None) -> None:
    """Write the package of a new method into a new folder.

    It holds a working method, its recipe and its entry point. By default the method has a loss alone. --with adds
    a memory of earlier images, companions (maps beside the images), scores (a prediction of its own), a look at the
    gradients, or several phases of a step.

    \b
    Example:
      cispbench method new featdist
      cispbench method new replay --with memory --with scores
      cispbench method new mib_plus --wraps mib
      pip install -e featdist && cispbench method check featdist
    """
    from cispbench.harness.contract.skeleton import write_skeleton

    for path in write_skeleton(name, folder, parts, base):
        click.echo(path)
    click.echo(f"\nNext: pip install -e {folder / name} && cispbench method check {name}")
