"""Describe what a run ran on, for its record: versions, machine and source tree; no host, user or path is named.

Linux tells what a process may use in files below /proc and /sys: peak memory, limits of its cgroups, cores that share
their hardware. macOS has no such files; there ``sysctl`` tells what the machine has. Windows is not supported.
"""

from __future__ import annotations

import configparser
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cispbench", "torch", "torchvision", "timm", "numpy")
TOOL_SECONDS = 5.0  # for git and sysctl; git may hang on a network drive
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
# Git sets these while it runs a hook. They would make our own call describe the hook's repository.
GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def describe_environment(device: str) -> dict[str, object]:
    """Describe the software and the machine that a run on ``device`` ("cpu", "cuda:0") uses.

    ``python`` and the packages: versions, None if not installed. ``platform``: system, release and machine. ``cpu``:
    its model. ``physical_cores`` and ``logical_cores``: those this process may use (its affinity and its cgroup's
    limit). ``threads``: torch's, None before torch is imported. ``memory_bytes``: of the machine or of the cgroup, the
    smaller. ``device_name`` and ``cuda`` (version) on a GPU, else None. It imports none of the packages.
    """
    physical, logical = usable_cores()
    description: dict[str, object] = {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "physical_cores": physical,
        "logical_cores": logical,
        "memory_bytes": _memory_bytes(),
        "device": device,
        "threads": None,
        "device_name": None,
        "cuda": None,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        description["threads"] = torch.get_num_threads()
        if device.startswith("cuda") and torch.cuda.is_available():
            description["device_name"] = torch.cuda.get_device_name(device)
            description["cuda"] = torch.version.cuda
    return description


def describe_git() -> dict[str, object]:
    """Describe the source tree the package runs from: ``{"commit": "1f3a...", "dirty": False}``.

    Untracked files do not count as changes, because results are written into the tree. A package that was installed
    from a commit (PEP 610) gives that commit. Both values are None where nothing is known: no checkout, no git.
    """
    if not _is_our_tree(ROOT):
        return _installed_commit()
    top, state = _checkout(ROOT)
    # A source tree unpacked inside another project's checkout would give the commit of that project.
    return state if top == ROOT else {"commit": None, "dirty": None}


def describe_distribution(package: metadata.Distribution) -> dict[str, object]:
    """Describe an installed package: name, version, whether its install is editable, commit and dirty as of git.

    The commit is that of the checkout around an editable install, else the one that pip installed from (PEP 610).
    """
    origin = _origin(package)
    editable = bool(origin.get("dir_info", {}).get("editable", False))
    state: dict[str, object]
    if editable:
        _, state = _checkout(Path(unquote(urlsplit(str(origin.get("url"))).path)))
    else:
        state = _pinned(origin)
    return {"name": package.name, "version": package.version, "editable": editable, **state}


def peak_host_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes, without its children."""
    # Linux: getrusage would include the peak of the parent, because fork and exec hand it down.
    for line in _read(PROC / "self" / "status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # here, because Windows lacks it and must come as far as our message

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


def usable_cores() -> tuple[int, int]:
    """Return how many physical and logical cores this process may keep busy, at least one each."""
    if sys.platform == "darwin":  # no affinity, no cgroups
        logical = os.cpu_count() or 1
        physical = _sysctl("hw.physicalcpu")
        return (int(physical) if physical.isdigit() else logical), logical
    cpus = os.sched_getaffinity(0)
    siblings = {_read(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus}
    most = max(1, math.ceil(min(_cpu_limits(), default=len(cpus))))
    return min(len(siblings), most), min(len(cpus), most)


def emulates_bf16() -> bool:
    """Whether this processor is known to lack bf16 arithmetic: torch then works, ten times slower or worse."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)  # which older versions lack
    if ask is None or (found := ask()).get("architecture") != "x86_64":
        return False
    return not any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    try:
        # Not read to its end: the kernel makes the text as it is read, which takes long on many cores.
        with (PROC / "cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _memory_bytes() -> int:
    if sys.platform == "darwin":
        size = _sysctl("hw.memsize")
        return int(size) if size.isdigit() else 0
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = (_read(place / name) for place in _cgroups("memory") for name in ("memory.max", "memory.limit_in_bytes"))
    return min([installed, *(int(text) for text in texts if text.isdigit())])


def _cpu_limits() -> Iterator[float]:
    """Yield how many cores each of this process's cgroups allows; nothing where there is no limit."""
    for place in _cgroups("cpu"):
        version_1 = f"{_read(place / 'cpu.cfs_quota_us')} {_read(place / 'cpu.cfs_period_us')}"
        for text in (_read(place / "cpu.max"), version_1):
            quota, _, period = text.partition(" ")
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups for ``controller`` and of those around them (versions 1 and 2)."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = CGROUPS / controller if controllers else CGROUPS
        folder = base / name.lstrip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(base))


def _read(path: Path) -> str:
    """Return the text of a small system file, "" if there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_our_tree(folder: Path) -> bool:
    config = configparser.RawConfigParser()
    try:
        config.read(folder / "setup.cfg", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return False
    return config.get("metadata", "name", fallback="") == "cispbench"


def _installed_commit() -> dict[str, object]:
    """Return the commit that pip installed this file from, None if it noted none."""
    try:
        package = metadata.distribution("cispbench")
    except metadata.PackageNotFoundError:
        return _pinned({})
    # Another copy of the package may be installed beside the one that runs.
    installed = package.locate_file(f"{__name__.replace('.', '/')}.py")
    return _pinned(_origin(package) if Path(str(installed)).resolve() == Path(__file__).resolve() else {})


def _origin(package: metadata.Distribution) -> dict[str, Any]:
    """Return what pip noted of where a package comes from (PEP 610); empty if it noted nothing."""
    origin: dict[str, Any] = json.loads(package.read_text("direct_url.json") or "{}")
    return origin


def _pinned(origin: dict[str, Any]) -> dict[str, object]:
    commit = origin.get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "dirty": False} if isinstance(commit, str) else {"commit": None, "dirty": None}


def _checkout(folder: Path) -> tuple[Path | None, dict[str, object]]:
    """Return the top folder of the checkout around ``folder``, with its commit and whether its files differ from it."""
    lines = (_git(folder, "rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
    if len(lines) != 2:
        return None, {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Path(lines[0]).resolve(), {"commit": lines[1], "dirty": None if changes is None else bool(changes.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says of the checkout around ``folder``, None if it fails, takes long or is absent."""
    variables = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    # Without the optional lock: otherwise the user's own git command could fail while a run asks.
    variables |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return _output_of(["git", "-C", str(folder), *arguments], variables)


def _sysctl(name: str) -> str:
    """Return a fact of a Mac, for example ``hw.memsize``; "" if it is unknown."""
    return (_output_of(["/usr/sbin/sysctl", "-n", name]) or "").strip()


def _output_of(command: list[str], variables: dict[str, str] | None = None) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_SECONDS, env=variables, stdin=subprocess.DEVNULL
        )
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
