"""From the steps of a sweep to the jobs of one SLURM array. Pure.

A job works on a **chain**: steps of which each is the only one that builds on the step before. If every step were a
job, a run would wait in the queue for each step (six times for a run of 15-1) and start Python as often, and no step
would begin earlier. Where several steps build on one, the chain ends, and each of them begins another chain: a base
that all methods share is one chain, and the later steps of each method are one chain each. A job that is requeued
finds its finished steps in the step store.

All chains are tasks of **one array**, because SLURM's limit of jobs at once (``--array=...%N``) holds within an array
alone: with one array for each base, a sweep of three seeds would run three times as many jobs as the user allows. But
``--dependency`` is an option of the whole array. Therefore the array is submitted on hold, each task is given its own
dependency on a task of the same array (``scontrol update JobId=<array>_<index> Dependency=afterok:<array>_<index>``),
and the array is released. ``--kill-on-invalid-dep`` takes the tasks behind a failed one out of the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cispbench.harness.sweep.graph import Node

Chain = tuple[Node, ...]


def group_steps(nodes: Sequence[Node], priorities: Mapping[str, int], elsewhere: Collection[str] = ()) -> list[Chain]:
    """Return the chains of ``nodes``; a chain comes after the one that it builds on, urgent ones (by key) first.

    ``nodes``: each after the step it builds on. ``elsewhere``: keys of steps that other jobs work on already; they are
    in no chain.
    """
    keys = {node.key for node in nodes}
    builds_on: dict[str, list[Node]] = {}
    for node in nodes:
        if node.previous in keys:
            builds_on.setdefault(str(node.previous), []).append(node)

    def chain_from(node: Node) -> Chain:
        chain = [node]
        while len(later := builds_on.get(chain[-1].key, [])) == 1 and later[0].key not in elsewhere:
            chain += later
        return tuple(chain)

    def is_first(node: Node) -> bool:
        return node.previous not in keys or node.previous in elsewhere or len(builds_on[str(node.previous)]) > 1

    firsts = [node for node in nodes if node.key not in elsewhere and is_first(node)]
    return [chain_from(node) for node in sorted(firsts, key=lambda node: -priorities[node.key])]
