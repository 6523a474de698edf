"""What a run ran on: complete, fast, and without names of hosts, users or paths."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import stat
import subprocess
import sys
import time
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from cispbench.harness.machine import environment
from cispbench.harness.machine.environment import describe_environment, describe_git, peak_host_bytes, usable_cores

KEYS = {
    *("python", "cispbench", "torch", "torchvision", "timm", "numpy", "platform", "cpu", "physical_cores"),
    *("logical_cores", "threads", "memory_bytes", "device", "device_name", "cuda"),
}
COMMIT = "1f3a5c7e" * 5


def test_the_environment_is_complete() -> None:
    described = describe_environment("cpu")
    assert set(described) == KEYS
    assert described["numpy"] == np.__version__
    assert described["cispbench"] == metadata.version("cispbench")
    assert described["device"] == "cpu"
    assert described["device_name"] is None
    assert 1 <= described["physical_cores"] <= described["logical_cores"] <= os.cpu_count()  # type: ignore[operator]
    assert 2**28 < described["memory_bytes"] < 2**50  # type: ignore[operator]
    json.dumps(described)


def test_it_names_no_host_user_or_path(monkeypatch: pytest.MonkeyPatch) -> None:
    system = platform.uname()._replace(node="node17.cluster.example")
    monkeypatch.setattr(platform, "uname", lambda: system)
    monkeypatch.setenv("USER", "a.researcher")
    described = describe_environment("cpu")
    text = json.dumps(described)
    assert "node17" not in text
    assert "a.researcher" not in text
    assert not [value for value in described.values() if re.search(r"(^|\s)/\w", str(value))]


def test_it_imports_none_of_the_packages_and_is_fast() -> None:
    code = """
import sys, time
from cispbench.harness.machine.environment import describe_environment
times = []
for _ in range(5):
    start = time.perf_counter()
    described = describe_environment("cuda:0")
    times.append(time.perf_counter() - start)
heavy = [name for name in ("torch", "torchvision", "timm", "numpy") if name in sys.modules]
print(heavy, described["threads"], described["device_name"], min(times) < 0.05)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] None None True\n"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-of-ours",))
    assert describe_environment("cpu")["no-such-package-of-ours"] is None


def test_the_gpu_is_named_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(is_available=lambda: True, get_device_name=lambda device: f"GPU of {device}")
    torch = types.SimpleNamespace(get_num_threads=lambda: 3, cuda=cuda, version=types.SimpleNamespace(cuda="12.4"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    described = describe_environment("cuda:1")
    assert (described["threads"], described["device_name"], described["cuda"]) == (3, "GPU of cuda:1", "12.4")
    described = describe_environment("cpu")
    assert (described["threads"], described["device_name"], described["cuda"]) == (3, None, None)


@pytest.mark.parametrize(
    ("process", "files", "cores", "memory"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "4096"}, 2, 4096),
        ("0::/hidden\n", {"cpu.max": "50000 100000", "memory.max": "max"}, 1, None),
        (
            "4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n",
            {
                "cpu/c/cpu.cfs_quota_us": "300000",
                "cpu/c/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/m/memory.limit_in_bytes": "8192",
            },
            3,
            8192,
        ),
        ("0::/\n", {}, 8, None),
    ],
)
def test_cgroup_limits_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: str,
    files: dict[str, str],
    cores: int,
    memory: int | None,
) -> None:
    for name, text in {"proc/self/cgroup": process, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    for cpu in range(8):
        topology = tmp_path / f"cpus/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "CPUS", tmp_path / "cpus")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == (min(4, cores), cores)
    if memory is not None:
        assert describe_environment("cpu")["memory_bytes"] == memory


def test_a_mac_is_described_by_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"hw.physicalcpu": "4", "hw.memsize": "17179869184", "machdep.cpu.brand_string": "Apple M1"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(environment, "PROC", tmp_path)  # as on a Mac: there is none
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(environment, "_output_of", lambda command: f"{told[command[-1]]}\n")
    described = describe_environment("cpu")
    assert (described["physical_cores"], described["logical_cores"]) == (4, 8)
    assert (described["memory_bytes"], described["cpu"]) == (2**34, "Apple M1")
    usage = types.SimpleNamespace(ru_maxrss=2**28)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert peak_host_bytes() == 2**28  # macOS counts bytes, Linux KiB
    monkeypatch.setattr(environment, "_output_of", lambda command: None)
    assert usable_cores() == (8, 8)
    assert describe_environment("cpu")["cpu"] == platform.machine()


def test_peak_memory_is_in_bytes_and_remembers() -> None:
    code = """
from cispbench.harness.machine.environment import peak_host_bytes
block = bytearray(b"x") * 2**27
del block
print(peak_host_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**27
    if sys.platform == "linux":
        # Not the peak of the process that runs the tests, which has touched more than this.
        assert int(done.stdout) < 2**28


def test_peak_memory_is_known_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = peak_host_bytes()
    monkeypatch.setattr(environment, "PROC", tmp_path)
    assert 0.5 * peak < peak_host_bytes() < 2**40


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of ours, and a stand-in for git that answers from files and notes how it was called."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "setup.cfg").write_text("[metadata]\nname = cispbench\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "git"
    script.write_text(f'#!/bin/sh\necho "$@ [$GIT_DIR$GIT_OPTIONAL_LOCKS]" >> {tmp_path}/calls\n. {tmp_path}/answer\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    answer(tmp_path, root)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(environment, "ROOT", root)
    return root


def answer(folder: Path, top: Path, changes: str = "", before: str = ":") -> None:
    """Let the stand-in report ``top`` and ``changes``, after the shell command ``before``."""
    (folder / "answer").write_text(
        f'{before}\ncase "$3" in rev-parse) echo "{top}"; echo {COMMIT};; status) printf "{changes}";; esac\n'
    )


def test_the_commit_of_our_checkout(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    assert describe_git() == {"commit": COMMIT, "dirty": False}
    assert (tree.parent / "calls").read_text().splitlines() == [
        f"-C {tree} rev-parse --show-toplevel HEAD [0]",
        f"-C {tree} status --porcelain --untracked-files=no [0]",
    ]
    answer(tree.parent, tree, changes=" M harness/cli.py\\n")
    assert describe_git() == {"commit": COMMIT, "dirty": True}


def test_another_projects_checkout_is_not_ours(tree: Path) -> None:
    answer(tree.parent, tree.parent)
    assert describe_git() == {"commit": None, "dirty": None}


@pytest.mark.parametrize("before", ["exit 128", "exec /bin/sleep 30"])
def test_a_git_that_fails_or_hangs_says_nothing(tree: Path, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TOOL_SECONDS", 0.5)
    answer(tree.parent, tree, before=before)
    start = time.monotonic()
    assert describe_git() == {"commit": None, "dirty": None}
    assert time.monotonic() - start < 5


def test_without_git_nothing_is_known(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    assert describe_git() == {"commit": None, "dirty": None}


@pytest.mark.parametrize("config", [None, "[metadata]\nname = another\n", "no section"])
def test_an_installed_package_gives_its_installers_commit(
    tree: Path, config: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "setup.cfg").unlink()
    if config is not None:
        (tree / "setup.cfg").write_text(config)
    place = "cispbench/harness/machine/environment.py"
    origin = json.dumps({"url": "https://example.org/cispbench.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}})
    notes = {"direct_url.json": origin}
    files = {place: environment.__file__}
    package = types.SimpleNamespace(locate_file=files.__getitem__, read_text=notes.get)
    monkeypatch.setattr(metadata, "distribution", lambda _: package)
    assert describe_git() == {"commit": COMMIT, "dirty": False}
    notes.clear()
    assert describe_git() == {"commit": None, "dirty": None}
    notes["direct_url.json"] = origin
    files[place] = str(tree / "another.py")
    assert describe_git() == {"commit": None, "dirty": None}
    assert not (tree.parent / "calls").exists()
