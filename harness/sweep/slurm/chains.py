"""From the steps that are left to the jobs of one SLURM array. Pure.

A job is a **chain**: steps of which each is the only one that builds on the step before. It trains them one after
the other, and a job that is requeued goes on where it was, for finished steps are in the step store. Steps of their
own jobs would wait in the queue again and again (six times in a row for a run of 15-1), and start Python as often,
without a single step beginning earlier. Where several steps build on one, the chain ends and each of them begins
another: a base that all methods share is one chain, and the methods' remaining steps are one chain each.

All chains are tasks of **one array**, because SLURM's parallelism limit (``--array=...%N``) holds within an array
alone: with an array for every common parent, three seeds would run three times what was asked for. ``--dependency``
is an option of the whole array, so the array is submitted on hold, each task is given a dependency of its own on a
task of the same array (``scontrol update JobId=<array>_<index> Dependency=afterok:<array>_<index>``), and the array
is released. ``--kill-on-invalid-dep`` takes the tasks behind a failed one out of the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cispbench.harness.sweep.graph import Node


@dataclass(frozen=True)
class Chain:
    """Steps of one job, in order; ``after`` is the chain (its index) whose last step the first one builds on."""

    nodes: tuple[Node, ...]
    after: int | None = None


def group_steps(nodes: Sequence[Node], order: dict[str, int], elsewhere: Collection[str] = ()) -> list[Chain]:
    """Group what is to be done into chains, those that much builds on (``order``, by key) first.

    ``nodes``: each after the one it builds on. ``elsewhere``: keys of those that other jobs are at already, which
    belong to no chain here.
    """
    keys = {node.key for node in nodes}
    below: dict[str, list[Node]] = {}
    for node in nodes:
        if node.previous in keys:
            below.setdefault(str(node.previous), []).append(node)

    def follow(node: Node) -> list[Node]:
        links = [node]
        while len(later := below.get(links[-1].key, [])) == 1 and later[0].key not in elsewhere:
            links += later
        return links

    mine = [node for node in nodes if node.key not in elsewhere]
    first = [n for n in mine if n.previous not in keys or n.previous in elsewhere or len(below[str(n.previous)]) > 1]
    links = [follow(node) for node in sorted(first, key=lambda node: -order[node.key])]
    last = {chain[-1].key: index for index, chain in enumerate(links)}
    return [Chain(tuple(chain), last.get(str(chain[0].previous))) for chain in links]
