"""``cispbench doctor``: what this machine has for a run, and what it lacks."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cispbench.harness.doctor import Finding

_WIDTH = 86


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder with VOC2012 or ADEChallengeData2016.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
              help="Folder of the records.")  # fmt: skip
@click.option("--steps-dir", type=click.Path(path_type=Path), help="Folder of weights and checkpoints. [.cispbench]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def doctor(context: click.Context, data_root: Path | None, out: Path, steps_dir: Path | None, as_json: bool) -> None:
    """Look at software, machine, data, folders and cluster, and say what a run would lack.

    Exit code 1 if something is found that no run could do with. Nothing is downloaded, and nothing is left behind.

    \b
    Example:
      cispbench doctor
      cispbench doctor --data-root /data --steps-dir /scratch/steps
    """
    import json
    from dataclasses import asdict

    from cispbench.harness.doctor import examine
    from cispbench.harness.step_store import default_steps_dir

    findings = examine(data_root, out, steps_dir or default_steps_dir())
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        click.echo(json.dumps({"problems": len(problems), "findings": [asdict(finding) for finding in findings]}))
    else:
        click.echo("\n".join([*map(_line, findings), "", _summary(len(problems))]))
    context.exit(1 if problems else 0)


def _line(finding: Finding) -> str:
    texts = [finding.text] if finding.hint is None else [finding.text, finding.hint]
    lines = [line for text in texts for line in textwrap.wrap(text, _WIDTH, break_long_words=False)]
    head = f"{finding.state:8} {finding.topic:14} "
    return head + f"\n{'':{len(head)}}".join(lines)


def _summary(problems: int) -> str:
    if problems:
        return f"{problems} to be solved before anything can run."
    return "Ready: cispbench run --method mbs --setting overlapped-100-10"
