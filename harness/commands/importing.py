"""``cispbench import``: turn checkpoints of released code into steps of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cispbench.harness.commands.options import JSON, STEPS_DIR, collected
from cispbench.harness.runs.request import ImportRequest


@click.group("import")
def import_() -> None:
    """Turn checkpoints of released code into steps of a run."""


@import_.command()
@collected(
    ImportRequest, "request",
    click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True)),
    click.option("--from", "code", required=True,
                 help="Code base that wrote it: mib, plop, rcil, mbs, ssul, barm or dkd."),
    click.option("--setting", required=True, help="<scenario>-<task> that it was trained on."),
    click.option("--model", help="Model that it fills. [the code base's usual one]"),
    click.option("--crop", type=click.IntRange(min=16), default=512, show_default=True,
                 help="Side of the training images, for a ViT's position grid."),
)  # fmt: skip
@STEPS_DIR
@JSON
def checkpoint(request: ImportRequest, steps_dir: Path | None, as_json: bool) -> None:
    """Make a released checkpoint a step of a run.

    The step can be tested and trained further.

    Files are read without running pickled code: one that holds more than tensors and plain values is refused.

    \b
    Example:
      cispbench import checkpoint 15-5-voc_MiB_0.pth --from mib --setting overlapped-15-5
      cispbench run --method mib --setting overlapped-15-5 --start-from KEY --until 0
    """
    from cispbench.harness.models.released import released_code
    from cispbench.harness.runs.importing import import_checkpoint
    from cispbench.harness.runs.step_store import StepStore, default_steps_dir
    from cispbench.splits.settings import parse_setting

    setting, code = parse_setting(request.setting), request.code
    step = import_checkpoint(request, StepStore(steps_dir or default_steps_dir()))
    if as_json:
        click.echo(json.dumps(asdict(step)))
        return
    norms = "|gamma| + 1e-5 of in-place ABN became plain scales" if step.in_place_abn else "norms taken as they are"
    click.echo(
        f"Imported {request.file} as step {step.step}/{setting.last_step} of {setting.name}\n"
        f"  model {step.model}, {step.parameters:,} parameters, {len(step.classes) - 1} classes and background\n"
        f"  from {released_code(code).source}; {norms}\n"
        f"  key {step.key}\n"
    )
    words = ["cispbench run --method", code, "--setting", setting.name, "--start-from", step.key[:12]]
    # Only what differs from the defaults of ``run``, so that the command stays short.
    words += ["--model", step.model] if request.model else []
    words += ["--set", f"data.crop={request.crop}"] if request.crop != 512 else []
    words += ["--steps-dir", str(steps_dir)] if steps_dir else []
    words += ["--data-root", "FOLDER"]
    click.echo(f"Evaluate it:  {' '.join(words)} --until {step.step}")
    if step.step < setting.last_step:
        click.echo(f"Go on:        {' '.join(words)}")
