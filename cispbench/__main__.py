"""``python -m cispbench`` is the command ``cispbench``."""

from __future__ import annotations

from cispbench.harness.cli import main

if __name__ == "__main__":
    main(prog_name="python -m cispbench")
