"""What README, docs and CONTRIBUTING show is true: commands parse, links lead somewhere, every page is on the site."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from cispbench.harness.cli import main
from cispbench.harness.commands.listing import listing
from cispbench.splits.settings import parse_setting

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))])
PLACEHOLDERS = {"NAME", "COMMAND", "..."}  # of commands that text speaks of
FILES_SHOWN = ("table.yaml", "cluster.yaml", "15-5-voc_MiB_0.pth", "mib-overlapped-15-5-seed0-KEY.json")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_commands(lines: str) -> Iterator[list[str]]:
    """Yield the words of every command, with those that a container or torchrun is given."""
    for line in lines.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|<>()"):
                if "cispbench" in words[:1] or (words[:2] == ["docker", "run"] and "cispbench" in words):
                    yield words[words.index("cispbench") + 1 :]
                words = []
            else:
                words.append(word)


def parse(words: list[str], *, whole: bool) -> None:
    """Parse a command's words as the command line does. ``whole``: with required options and types of values."""
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    try:
        command.make_context(command.name, rest, resilient_parsing=not whole)
    except click.exceptions.Exit as done:
        assert done.exit_code == 0, words
    for option, value in pairwise(words):
        if option == "--setting" and "*" not in value:
            parse_setting(value)
    if words[:1] == ["list"] and whole:
        listing(words[1], as_json=False)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pages that the site makes from code and data."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("docs") / "generated"
    module.generate(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_parses(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES_SHOWN:
        Path(name).touch()
    for block in fenced(text_of(page), "bash"):
        for words in shell_commands(block):
            parse(words, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_text_speaks_of_exists(page):
    for spoken in re.findall(r"`cispbench ([^`]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        words = shlex.split(spoken)
        if words[0] not in PLACEHOLDERS:
            parse([word for word in words if word not in PLACEHOLDERS], whole=False)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in found if not re.match(r"https?://|mailto:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading_on_it(page, generated):
    for target in targets(text_of(page)):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if name.startswith("generated/"):
            path = generated / name.removeprefix("generated/")
        elif name.startswith("leaderboard/"):  # copied to the root of the site
            path = generated / "site" / name
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(text_of(path)), f"{page.name}: {target}"


def test_every_method_has_a_page_with_its_recipe_and_published_numbers(generated):
    for name in ("mib", "plop", "mbs"):
        text = text_of(generated / "methods" / f"{name}.md")
        assert f"# {name} on overlapped-15-1, profile paper" in text
        assert "## Quirks of the released code\n\nWhere" in text
        assert text.count("| overlapped-15-1 |") >= 1
    for target in targets(text_of(generated / "methods.md")):
        assert (generated / target).is_file()


def test_every_command_is_on_the_page_of_commands(generated):
    text = text_of(generated / "commands.md")
    for words in ("run", "data check", "import checkpoint", "method new", "ledger lint"):
        assert f"## {words}\n" in text


def test_every_page_is_in_the_sites_menu():
    menu = set(
        "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", text_of(ROOT / "docs" / "index.md"), re.DOTALL)).split()
    )
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= menu


def test_pictures_are_small():
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 100_000, path
