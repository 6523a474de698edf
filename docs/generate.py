"""Write the pages of the site that are made from code and data: methods, lists, commands and the leaderboard.

Everything is asked from the command line (``cispbench ... --json``), which is stable, and not from functions below it.
The pages lie in ``docs/generated/`` and are not committed. ``python docs/generate.py`` writes them without Sphinx.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from cispbench.harness.cli import main

ROOT = Path(__file__).resolve().parent.parent
SHOWN_SETTINGS = ("overlapped-15-1", "overlapped-100-10")  # a recipe is printed for one setting of each data set
LISTS = {
    "settings": "Any legal `X-Y` works, too; these are the settings with published counts of images.",
    "models": "A family is a decoder. `-` means that the encoder starts from random weights. Some methods need what "
    "not all networks offer: *linear*, a linear classifier for each group of classes; *branches*, layers of its own "
    "for each group; *branch_features*, what these layers compute; *two_branches*, RCIL's pairs of convolutions.",
    "profiles": "A profile says how big a run is.",
    "protocols": "Each switch is explained in [Protocols](../protocols.md).",
    "weights": "Pre-trained encoders by name.",
    "quirks": "A quirk is a departure of released code from its paper. Each one is an option.",
}


def generate(folder: Path) -> None:
    """Write all pages below ``folder``, which is emptied first."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "methods").mkdir(parents=True)
    methods = ask("list", "methods")
    for row in methods:
        _write(folder / "methods" / f"{row['method']}.md", method_page(row))
    _write(folder / "methods.md", methods_page(methods))
    _write(folder / "lists.md", lists_page())
    _write(folder / "commands.md", commands_page())
    run("leaderboard", "--results", str(ROOT / "results"), "--output", str(folder / "site"))


def run(*words: str) -> str:
    """Return what a command prints. Raises RuntimeError with its message where it fails."""
    done = CliRunner().invoke(main, list(words), catch_exceptions=False)
    if done.exit_code != 0:
        raise RuntimeError(f"cispbench {' '.join(words)}: {done.output}")
    return done.output.strip()


def ask(*words: str) -> Any:
    """Return what a command prints with ``--json``, read."""
    return json.loads(run(*words, "--json"))


def methods_page(methods: Sequence[dict[str, Any]]) -> str:
    """Return the list of all methods, with a link to the page of each."""
    rows = [
        (f"[{row['method']}](methods/{row['method']}.md)", row["version"], row["published"] or "-", row["needs"] or "-",
         cell(row["what"])) for row in methods
    ]  # fmt: skip
    names = "\n".join(f"methods/{row['method']}" for row in methods)
    return "\n\n".join(
        [
            "# Methods",
            "Each page is made from the method's recipe, its quirks and the ledger of published numbers. The same is "
            "printed by `cispbench show NAME` and `cispbench ledger show --method NAME`.",
            table(("method", "version", "published", "needs", "what it does"), rows),
            f"```{{toctree}}\n:hidden:\n\n{names}\n```",
        ]
    )


def method_page(row: dict[str, Any]) -> str:
    """Return the page of one method: what it is, options, parts, recipe, quirks and published numbers."""
    name = row["method"]
    (entry,) = metadata.entry_points(group="cispbench.methods", name=name)
    cls = entry.load()
    facts = [("Published", row["published"]), ("Needs", row["needs"]), ("Version", row["version"])]
    parts = [f"# {name}", inspect.getdoc(inspect.getmodule(cls)) or "", row["what"]]
    parts[2] += "".join(f" {what}: {cell(value)}." for what, value in facts if value)
    parts += ["```bash", f"cispbench run --method {name} --setting overlapped-15-1", "```"]
    page = ["\n\n".join(parts[:3]), "\n".join(parts[3:])]
    page += _options(cls.Options)
    page += _ablation(name)
    page += _quirks(name)
    page += _recipes(name)
    page += _published(name)
    return "\n\n".join(page)


def _options(options: type[Any]) -> Iterator[str]:
    listed = fields(options)
    yield "## Options"
    if not listed:
        yield "This method has no options of its own."
        return
    # Options that extend others say only what they add; dataclasses without a text of their own get a signature.
    for cls in options.__mro__[:-1]:
        if not (text := inspect.cleandoc(vars(cls).get("__doc__") or "")).startswith(f"{cls.__name__}("):
            yield text
    yield "The defaults of the code; the recipe may set others. Change one with `--set method.NAME=VALUE`."
    defaults = options()
    yield table(("option", "default"), [(f"`{entry.name}`", f"`{getattr(defaults, entry.name)}`") for entry in listed])


def _ablation(name: str) -> Iterator[str]:
    """Yield the parts that can be switched off; most methods name none."""
    done = CliRunner().invoke(main, ["show", name, "--ablation", "--json"])
    if done.exit_code == 0:
        yield "## Parts"
        yield "Each row is a run with one part switched off, or changed."
        rows = json.loads(done.output).items()
        yield table(
            ("run", "options"), [(cell(what), " ".join(f"`--set {word}`" for word in words)) for what, words in rows]
        )


def _quirks(name: str) -> Iterator[str]:
    listed = [row for row in ask("list", "quirks") if row["quirk"].startswith(f"{name}.")]
    yield "## Quirks of the released code"
    if not listed:
        yield "None of its own. Quirks that all methods share are in [Lists](../lists.md#quirks)."
        return
    yield "Where the released code departs from the paper, the released behaviour is the default."
    for row in listed:
        where = f" Only for: {cell(row['only for'])}." if row["only for"] else ""
        switch = f"Released: `{row['option']}={row['released']}`; otherwise `{row['otherwise']}`.{where}"
        short = row["quirk"].partition(".")[2]
        yield f"- **{short}**: {cell(row['what'])} {switch} Source: {cell(row['source'])}."


def _recipes(name: str) -> Iterator[str]:
    yield "## Recipe"
    yield "As it runs under the profile `paper`, with the source of every value."
    for setting in SHOWN_SETTINGS:
        yield f"```yaml\n{run('show', name, '--setting', setting, '--profile', 'paper')}\n```"


def _published(name: str) -> Iterator[str]:
    yield "## Published numbers"
    done = CliRunner().invoke(main, ["ledger", "show", "--method", name, "--json"])
    if done.exit_code != 0:
        yield "The ledger holds none."
        return
    yield "mIoU in percent, as printed. What *kind* means: [Reading the leaderboard](../../reading-leaderboard.md)."
    names = ("setting", "backbone", "old", "new", "all", "kind", "source")
    rows = json.loads(done.output)
    for row in rows:
        row["kind"] += "?" if row["run_by_inferred"] else ""
    yield table(names, [[cell(row[column]) for column in names] for row in rows])


def lists_page() -> str:
    """Return every list that ``cispbench list`` prints, but for the methods'."""
    parts = ["# Lists", "What `cispbench list` prints."]
    for what, says in LISTS.items():
        rows = ask("list", what)
        parts += [f"## {what.capitalize()}", says]
        parts.append(table(list(rows[0]), [[cell(value) for value in row.values()] for row in rows]))
    return "\n\n".join(parts)


def commands_page() -> str:
    """Return the help of every command."""
    parts = ["# Commands", "What `cispbench COMMAND --help` prints."]
    for words in command_names(main):
        name = " ".join(words)
        parts += [f"## {name}", f"```text\n{run(*words, '--help')}\n```"]
    return "\n\n".join(parts)


def command_names(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, groups replaced by their commands."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from command_names(command, (*above, name))
        else:
            yield (*above, name)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def cell(value: Any) -> str:
    """Return a value as text that Markdown shows as it is."""
    if value is None:
        return "-"
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    for mark in ("\\", "|", "*", "_", "<", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _write(path: Path, text: str) -> None:
    path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(__file__).parent / "generated")
