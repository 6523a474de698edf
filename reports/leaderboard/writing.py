"""Write the leaderboard: a Markdown file, a folder of pages, or a README's section; each file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from cispbench.reports.leaderboard.board import Leaderboard
from cispbench.reports.leaderboard.page import FILES, render_pages
from cispbench.reports.leaderboard.text import leaderboard_markdown, readme_section, replace_section
from cispbench.results.atomic import explain_os_error, make_folder, write_atomic
from cispbench.splits.errors import StoreError

NAME = "leaderboard"


def write_leaderboard(found: Leaderboard, folder: Path) -> list[Path]:
    """Write ``leaderboard.md`` and the pages below ``leaderboard/`` into a folder; return the files.

    Of earlier pages those that have nothing to show any more are removed. Raises StoreError.
    """
    texts = render_pages(found)
    pages = folder / NAME
    make_folder(pages)
    written = {folder / f"{NAME}.md": leaderboard_markdown(found)} | {pages / file: texts[file] for file in texts}
    for path, text in written.items():
        write_atomic(path, text.encode())
    for path in (pages / file for file in FILES if file not in texts):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error("remove", path, error) from error
    return list(written)


def update_readme(found: Leaderboard, path: Path) -> bool:
    """Replace the leaderboard's section of a README; return whether that changed it.

    Raises StoreError if it cannot be read or written, UsageError if it has no place for the section.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Name a README that is there.") from error
    after = replace_section(before, readme_section(found), str(path))
    if after != before:
        write_atomic(path, after.encode())
    return after != before
