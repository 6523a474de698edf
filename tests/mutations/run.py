"""Plant faults in the methods, one by one, and see that the tests catch them.

    python tests/mutations/run.py [--only METHOD] [--jobs 2]

Each entry of ``mutations.yaml`` replaces a text, which must occur exactly once, in a copy of the project; the tests of
the methods and of their contract run on the copy until the first one fails, those of the method first. At the end the
tests that caught a fault run on a copy without any, and must pass. Prints which test caught each fault, and exits 1 if
one survived. Takes about ten seconds a fault, and as long as all these tests for one that survives, so it is no part of
the test suite.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("splits", "results", "harness", "methods", "reports")
FILES = ("setup.cfg", "pyproject.toml", "README.md")
PRINTED = "printed.txt"
TESTS = (
    "tests/methods/test_golden*.py",
    "tests/methods/test_[!g]*.py",
    "tests/harness/models/test_two_branches.py",
    "tests/harness/contract/test_contract.py",
)


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


def tests_for(method: str) -> tuple[list[str], list[str]]:
    """Return the files of tests that name the method, recordings first, and the others."""
    word = re.compile(rf"(?i)(?<![a-z]){method.partition('_')[0]}(?![a-z])")  # those of dkd_m are dkd's
    paths = dict.fromkeys(path for glob in TESTS for path in sorted(ROOT.glob(glob)))
    share = {path: len(word.findall(text := path.read_text())) / len(text) for path in paths}
    recorded = {path: "golden" in path.name or "trajector" in path.name for path in paths}
    own = sorted((path for path in paths if share[path]), key=lambda path: (not recorded[path], -share[path]))
    names = [str(path.relative_to(ROOT)) for path in (*own, *(path for path in paths if not share[path]))]
    return names[: len(own)], names[len(own) :]


def survive(mutation: Mutation) -> tuple[bool, str]:
    """Run all tests on a copy with the fault; return whether all passed, and the first that did not."""
    own, others = tests_for(mutation.method)
    # Apart, because reading all files takes longer than most faults live.
    passed, test = run(own, mutation)
    return run(others, mutation) if passed else (passed, test)


def run(tests: list[str], mutation: Mutation | None = None) -> tuple[bool, str]:
    """Run tests on a copy with the fault in it, or none; return whether all passed, and the first that did not."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "main"
        for folder in ("cispbench", *ROOMS, "tests"):  # what else lies beside them, an environment perhaps, is large
            shutil.copytree(ROOT / folder, copy / folder)  # compiled files, too: they save seconds
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
        # A fork has torch already, whose import takes longer than most faults live.
        child = multiprocessing.get_context("fork").Process(target=_run_here, args=(copy, package.parent, tests))
        child.start()
        child.join()
        printed = (copy / PRINTED).read_text()
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    if child.exitcode != 0 and failed is None:
        raise RuntimeError(f"pytest ended with {child.exitcode} and names no test that failed:\n{printed[-2000:]}")
    return child.exitcode == 0, failed[1] if failed else ""


def _run_here(copy: Path, packages: Path, tests: list[str]) -> None:
    """Run tests of a copy in this process, which imports ``cispbench`` from ``packages``, and leave it."""
    os.chdir(copy)
    with Path(PRINTED).open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    # The folder of this file, and that of the copy, in which cispbench has no rooms, must not come first.
    sys.path[:1] = [str(packages), str(copy)]
    os.environ["PYTHONPATH"] = f"{packages}{os.pathsep}{copy}"
    assert "cispbench" not in sys.modules
    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]))
    sys.stdout.flush()
    os._exit(code)  # without the clean-up of what the parent has imported, which is not this process's


def main() -> int:
    """Run all mutations, or those of one method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="method whose mutations to run")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    choices = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # and so no threads, which a fork would lack
    for slow in ("torch", "torchvision.transforms.v2", "torchvision.models.segmentation"):
        importlib.import_module(slow)
    mutations = [m for m in read_mutations() if choices.only in (None, m.method)]
    caught_by: dict[str, None] = {}
    survivors = 0
    with ThreadPoolExecutor(choices.jobs) as pool:
        for mutation, (survived, test) in zip(mutations, pool.map(survive, mutations), strict=True):
            survivors += survived
            if not survived:
                caught_by[test] = None
            verdict = "SURVIVED" if survived else f"caught by {test}"
            print(f"{mutation.method:9} {mutation.what}: {verdict}", flush=True)
    print(f"{len(mutations) - survivors} of {len(mutations)} faults caught")
    sound, test = run(list(caught_by)) if caught_by else (True, "")
    if not sound:
        print(f"without any fault {test} fails, too: it caught nothing")
    return 0 if sound and not survivors else 1


if __name__ == "__main__":
    sys.exit(main())
