"""Kill random processes of a sweep until it is done all the same, and hold it against the undisturbed sweep.

    python tests/chaos/run.py --kills 50 --every 2 8 [--calm FOLDER] -- --methods mib --settings overlapped-15-1 ...

What follows ``--`` is the selection of ``cispbench sweep``. Every few seconds one of the sweep's processes (the sweep,
a worker, or one that serves them), drawn at random, gets SIGKILL; whatever ends the sweep, it is started again.
``--calm``: a folder with ``out`` and ``steps`` of the same sweep, finished undisturbed; without it, it is made first.
Exits 1 unless every record has the same confusion matrix and every step the same weights, and nothing half-written is
left. ``tests/harness/sweep/test_sweep_chaos.py`` runs a short version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SWEEP = (sys.executable, "-m", "cispbench.harness.cli", "sweep")
STARTS = 200
LEFTOVERS = re.compile(r"\.tmp$|\.part$|/\.[^/]*$|checkpoint|lock\.holder\.json$|\.damaged-")
Outcome = dict[str, tuple[Any, str]]


def command(words: list[str], home: Path) -> list[str]:
    """Return the sweep with its two stores below ``home``."""
    return [*SWEEP, *words, "--out", str(home / "out"), "--steps-dir", str(home / "steps")]


def outcome(home: Path) -> Outcome:
    """Return the confusion matrix and the digest of the weights of every record; ValueError for a damaged file."""
    found = {}
    for path in sorted((home / "out").glob("runs/*/*/*/*/step-*.json")):
        record = json.loads(path.read_text())
        step = home / "steps" / "steps" / record["key"]
        digests = {name: hashlib.sha256((step / name).read_bytes()).hexdigest() for name in _files(step)}
        if digests != json.loads((step / "manifest.json").read_text())["files"]:
            raise ValueError(f"{step} is not what its manifest says")
        found[str(path.relative_to(home))] = (record["confusion"], digests["weights.safetensors"])
    return found


def _files(step: Path) -> list[str]:
    return [path.name for path in step.glob("*.safetensors")]


def leftovers(home: Path) -> list[str]:
    """Return what nobody will need again: temporary files, drafts, notes, checkpoints and damaged steps."""
    names = [f"/{path.relative_to(home)}" for path in home.rglob("*")]
    return [name for name in names if LEFTOVERS.search(name)]


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(owner) == group and state != "Z":
            found.append(int(folder.name))
    return found


def disturb(
    words: list[str], home: Path, kills: int, pause: tuple[float, float], seed: int
) -> tuple[Counter[str], int]:
    """Run the sweep to its end; return how many processes of which kind were killed, and how often it was started."""
    chance, killed = random.Random(seed), Counter[str]()
    for start in range(1, STARTS + 1):
        said = home / f"start-{start}.log"
        with said.open("w") as log:
            sweep = subprocess.Popen(command(words, home), stdout=log, stderr=log, start_new_session=True)
        while sweep.poll() is None and "start " not in said.read_text():
            time.sleep(0.05)
        while sweep.poll() is None:
            time.sleep(chance.uniform(*pause))
            if killed.total() < kills and sweep.poll() is None:
                victim = chance.choice(members(sweep.pid))
                os.kill(victim, signal.SIGKILL)
                killed["the sweep" if victim == sweep.pid else "others"] += 1
        while members(sweep.pid):  # what the sweep has left behind has to end by itself
            time.sleep(0.05)
        if sweep.returncode == 0:
            return killed, start
    raise RuntimeError(f"not done after {STARTS} starts; the last one's words are in {home}/start-{STARTS}.log")


def main() -> int:
    """Run the two sweeps and compare them."""
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=float, nargs=2, default=[2.0, 8.0], metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calm", type=Path)
    parser.add_argument("--home", type=Path, help="where to work [a temporary folder]")
    chosen, words = parser.parse_args(own), sys.argv[len(own) + 2 :]
    with tempfile.TemporaryDirectory() as scratch:
        home = chosen.home or Path(scratch)
        calm, wild = chosen.calm or home / "calm", home / "wild"
        if chosen.calm is None:
            calm.mkdir(parents=True)
            subprocess.run(command(words, calm), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wild.mkdir(parents=True)
        began = time.monotonic()
        killed, starts = disturb(words, wild, chosen.kills, chosen.every, chosen.seed)
        ours, theirs, left = outcome(wild), outcome(calm), leftovers(wild)
        told = any("Traceback" in path.read_text() for path in wild.glob("start-*.log"))
    same = sum(ours.get(name) == value for name, value in theirs.items())
    print(f"{killed.total()} kills {dict(killed)}, {starts} starts, {time.monotonic() - began:.0f} s")
    print(f"{same} of {len(theirs)} records and weights identical, {len(ours)} there; left over: {left or 'nothing'}")
    print(f"tracebacks in what the sweeps said: {'some' if told else 'none'}")
    return 0 if ours == theirs and not left and ours else 1


if __name__ == "__main__":
    sys.exit(main())
