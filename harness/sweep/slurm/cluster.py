"""What a sweep asks of a SLURM cluster: the file of ``--slurm``, read strictly, with every field explained once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cispbench.splits.errors import UsageError
from cispbench.splits.strict_fields import read_part, refusal
from cispbench.splits.strict_yaml import load_yaml

EARLY_SECONDS = 60  # SLURM looks at the clock so seldom that its signal may come this much earlier than asked for
SHORTEST_DELAY = 20  # seconds: an iteration has to end, and a checkpoint to be written
# Options of sbatch that a sweep sets itself, and the field to use where there is one.
OWN_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "time": "time_limit_min", "gpus": "gpus",
    "gpus-per-node": "gpus", "gpus-per-task": "gpus", "cpus-per-task": "cpus_per_task", "mem": "memory_gb",
    "signal": "signal_delay_s", "array": "array_parallelism", "job-name": "", "dependency": "", "hold": "",
    "requeue": "", "no-requeue": "", "kill-on-invalid-dep": "", "output": "", "error": "", "open-mode": "",
    "nodes": "", "ntasks": "", "ntasks-per-node": "", "wrap": "", "parsable": "", "wait": "",
}  # fmt: skip


def node_device(asked: str, cluster: Cluster) -> str:
    """Return the device of the cluster's nodes: the GPU that a job asks for, never the CPU in its place.

    Raises UsageError for a device that does not go with the cluster file.
    """
    wanted = "cuda" if cluster.gpus else "cpu"
    if asked in ("auto", wanted) or (asked == "cpu" and cluster.gpus):
        return wanted if asked == "auto" else asked
    raise UsageError(
        f"--device {asked} does not go with gpus: {cluster.gpus} in the cluster file.",
        hint="Leave --device out: a job trains on the GPU that it asks for, else on the CPU.",
    )


def _asks(default: Any, says: str, example: str = "") -> Any:
    """Declare a field: its default, what it means, and what the example file shows in place of the default."""
    return field(default=default, metadata=_told(says, example))


def _told(says: str, example: str = "") -> dict[str, str]:
    return {"says": says, "example": example}


@dataclass(frozen=True)
class Cluster:
    """What each job of a sweep asks for, and how the jobs are treated; ``cluster_example`` explains every field."""

    partition: str | None = _asks(None, "Partition to submit to; null: the cluster's default.", "gpu")
    account: str | None = _asks(None, "Account to charge; null: your default.")
    qos: str | None = _asks(None, "Quality of service; null: your default.")
    time_limit_min: int = _asks(
        240, "Minutes a job may run before it is requeued and goes on from its checkpoint; a step may take many such."
    )
    gpus: int = _asks(1, "GPUs of a step: 1, or 0 to train on the CPU.")
    cpus_per_task: int = _asks(8, "CPU cores of a step: they compute, or load images for the GPU.")
    memory_gb: int = _asks(32, "Memory of a step, GB.")
    array_parallelism: int = _asks(8, "Jobs of this sweep that may run at once.")
    signal_delay_s: int = _asks(
        120, "Seconds before its time limit at which a job is told to save and leave; an iteration must fit in twice."
    )
    max_requeues: int = _asks(
        20, "How often a job may start again, for its time limit, pre-emption or the death of a node together."
    )
    poll_s: int = _asks(15, "Seconds between two looks at the queue while the sweep is watched.")
    setup: tuple[str, ...] = _asks(
        (), "Lines of shell that each job begins with.", '["module load cuda", "export CISPBENCH_DATA=/data"]'
    )
    python: str | None = _asks(
        None, "Command that starts Python on the nodes; null: the Python of this installation, at the same path."
    )
    options: dict[str, str | int | Literal[True]] = field(
        default_factory=dict, metadata=_told("More options of sbatch, without their dashes.", "{constraint: a100}")
    )


def read_cluster(path: Path) -> Cluster:
    """Read a cluster file. Raises UsageError that names the file and everything that is wrong with it."""
    content = load_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise UsageError(
            f"{path}: a cluster file maps names to values, one a line.",
            hint="`cispbench sweep --slurm-example` prints one.",
        )
    problems: list[str] = []
    cluster = Cluster(**read_part(Cluster, content, problems))
    problems += _broken_rules(cluster)
    if problems:
        raise refusal(str(path), problems, UsageError)
    return cluster


def cluster_example() -> str:
    """Return a cluster file with every field, its default (or what an example says better) and its meaning."""
    lines = ["# What each job of `cispbench sweep --slurm` asks for. Every line may be left out."]
    for entry in fields(Cluster):
        value = entry.metadata["example"] or _yaml(getattr(Cluster(), entry.name))
        lines += ["", f"# {entry.metadata['says']}", f"{entry.name}: {value}"]
    return "\n".join(lines)


def _broken_rules(cluster: Cluster) -> list[str]:
    least = {
        "time_limit_min": 1, "gpus": 0, "cpus_per_task": 1, "memory_gb": 1, "array_parallelism": 1,
        "signal_delay_s": SHORTEST_DELAY, "max_requeues": 0, "poll_s": 1,
    }  # fmt: skip
    problems = [
        f"{name} must be at least {value}, not {getattr(cluster, name)}."
        for name, value in least.items()
        if getattr(cluster, name) < value
    ]
    if cluster.gpus > 1:
        problems.append(f"gpus must be 0 or 1, not {cluster.gpus}: a step of a sweep is trained on one device.")
    needed = 2 * (cluster.signal_delay_s + EARLY_SECONDS)
    if cluster.time_limit_min * 60 < needed:
        problems.append(
            f"signal_delay_s {cluster.signal_delay_s} does not go with time_limit_min {cluster.time_limit_min}: SLURM "
            f"sends the signal up to {EARLY_SECONDS} s early, and a job would be told to leave before it has worked "
            f"half of its time. Use a time limit of at least {-(-needed // 60)} minutes, or a shorter delay."
        )
    for name in cluster.options:
        own = OWN_OPTIONS.get(name.lstrip("-").replace("_", "-"))
        if own is not None:
            problems.append(f"options: {name} is set by the sweep{f' from {own}' if own else ''}; leave it out.")
        elif name.startswith("-"):
            problems.append(f"options: write {name.lstrip('-')!r} without its dashes.")
    return problems


def _yaml(value: Any) -> str:
    return "null" if value is None else "[]" if value == () else str(value)
