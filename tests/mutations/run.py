"""Plant faults in the methods, one by one, and see that the tests catch them.

    python tests/mutations/run.py [--only METHOD] [--jobs 2]

Each entry of ``mutations.yaml`` replaces a text, which must occur exactly once, in a copy of the project; the tests of
the methods and of their contract run on the copy until the first one fails; on a copy without any fault all must pass.
Prints which test caught each fault, and exits 1 if one survived. Takes ten minutes on two cores, so it is no part of
the test suite.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("splits", "results", "harness", "methods", "reports")
FILES = ("setup.cfg", "pyproject.toml", "README.md")
# The quick ones first: most faults fall at once.
TESTS = (
    "tests/methods/test_golden.py", "tests/methods/test_golden_rcil.py", "tests/methods/test_golden_barm.py",
    "tests/harness/models/test_two_branches.py", "tests/methods/test_trajectory_rcil.py",
    "tests/methods/test_trajectory_barm.py", "tests/methods/test_reference.py", "tests/methods/test_baselines.py",
    "tests/methods/test_switches.py", "tests/methods/test_steps.py", "tests/methods/test_trajectories.py",
    "tests/harness/contract/test_contract.py",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """A fault: in ``file``, ``find`` becomes ``replace``; ``what`` says in words what is wrong then."""

    method: str
    what: str
    file: str
    find: str
    replace: str


def read_mutations() -> list[Mutation]:
    """Return the list; ValueError names an entry whose text does not occur exactly once."""
    content = yaml.safe_load((Path(__file__).parent / "mutations.yaml").read_text())
    found = [Mutation(method=method, **entry) for method, entries in content.items() for entry in entries]
    for mutation in found:
        count = (ROOT / mutation.file).read_text().count(mutation.find)
        if count != 1:
            raise ValueError(f"{mutation.file} holds {mutation.find!r} {count} times, not once")
    return found


def survive(mutation: Mutation | None) -> tuple[bool, str]:
    """Run the tests on a copy with the fault in it, or none; return whether all passed, and the test that did not."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "main"
        for folder in ("cispbench", *ROOMS, "tests"):  # what else lies beside them, an environment perhaps, is large
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, copy / name)
        (Path(scratch) / "shared").symlink_to(ROOT.parent / "shared")
        if mutation is not None:
            path = copy / mutation.file
            path.write_text(path.read_text().replace(mutation.find, mutation.replace))
        package = Path(scratch) / "path" / "cispbench"
        shutil.copytree(copy / "cispbench", package)
        for room in ROOMS:
            (package / room).symlink_to(copy / room)
        tests = [test for test in TESTS if (copy / test).exists()]
        done = subprocess.run(
            # -P: the folder of the copy, in which cispbench has no rooms, must not come first.
            [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests],
            cwd=copy, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": f"{package.parent}{os.pathsep}{copy}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode == 0, failed[1] if failed else done.stdout[-300:]


def main() -> int:
    """Run all mutations, or those of one method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="method whose mutations to run")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    choices = parser.parse_args()
    mutations = [m for m in read_mutations() if choices.only in (None, m.method)]
    sound, test = survive(None)
    if not sound:
        print(f"without any fault {test} fails already: nothing can be told from these tests")
        return 1
    survivors = 0
    with ThreadPoolExecutor(choices.jobs) as pool:
        for mutation, (survived, test) in zip(mutations, pool.map(survive, mutations), strict=True):
            survivors += survived
            verdict = "SURVIVED" if survived else f"caught by {test}"
            print(f"{mutation.method:9} {mutation.what}: {verdict}", flush=True)
    print(f"{len(mutations) - survivors} of {len(mutations)} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
