"""A sweep on a cluster, watched: the stores tell what is done, the jobs' notes how far they are, the queue the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Node
from cispbench.harness.sweep.local import Failure, Outcome, sigterm_as_ctrl_c
from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.notes import Place, Said, SlurmNotes
from cispbench.harness.sweep.slurm.queue import Queued
from cispbench.harness.sweep.slurm.submit import Placed
from cispbench.results.store import Store
from cispbench.splits.errors import RunError

PATIENCE = 3  # looks at a job that has ended and left nothing: files of another machine may take seconds to appear


class SlurmWatch:
    """Watches the jobs of steps until each is done, has failed, or cannot be begun; ``nodes`` in order."""

    def __init__(
        self, nodes: Sequence[Node], placed: dict[str, Placed], records: Store, steps_dir: Path, poll_s: int,
        view: SweepView,
    ) -> None:  # fmt: skip
        self._waiting = {node.key: node for node in nodes}
        self._placed, self._records, self._steps = placed, records, StepStore(steps_dir)
        self._notes, self._poll_s, self._view = SlurmNotes(steps_dir), poll_s, view
        self._begun: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._lost: dict[str, int] = {}
        self._odd: dict[Place, str] = {}
        self._failures: list[Failure] = []
        self._finished = 0
        self._queue: dict[Place, Queued] | None = None
        self._answers = True

    def run(self) -> Outcome:
        """Watch to the end; KeyboardInterrupt (also for SIGTERM) leaves the jobs to the cluster."""
        self._view.begin(list(self._waiting.values()))
        with sigterm_as_ctrl_c():
            try:
                while self._waiting:
                    self._look()
                    if self._waiting:
                        self._pause()
            except KeyboardInterrupt:
                self._say_what_goes_on()
                raise
            finally:
                self._view.close()
        return Outcome(self._finished, tuple(self._failures))

    def _pause(self) -> None:
        end = time.monotonic() + self._poll_s
        while (left := end - time.monotonic()) > 0:
            self._view.refresh()
            time.sleep(min(0.5, left))

    def _look(self) -> None:
        fresh = self._look_at_queue()
        for key in list(self._waiting):
            if key in self._waiting:  # it may have gone with one that it builds on
                self._look_at(self._waiting[key], fresh)

    def _look_at_queue(self) -> bool:
        """Ask what is in the queue; a controller that does not answer for a while is no reason to give anything up."""
        names = {self._placed[key].place.name for key in self._waiting}
        try:
            self._queue = slurm_queue.look_at_queue(names)
        except RunError as error:
            if self._answers:
                self._view.note(f"the cluster does not answer: {error.message} Asking on.")
            self._answers = False
            return False
        if not self._answers:
            self._view.note("the cluster answers again")
        self._answers = True
        for place, job in self._queue.items():
            if job.odd_reason and self._odd.get(place) != job.odd_reason:
                self._view.note(f"job {job.job} waits: {job.odd_reason} (`scontrol show job {job.job}` tells more)")
            self._odd[place] = job.odd_reason
        return True

    def _look_at(self, node: Node, fresh: bool) -> None:
        placed, said = self._placed[node.key], self._notes.said(node.key)
        job = None if self._queue is None else self._queue.get(placed.place)
        mine = said is not None and said.place == placed.place
        over = fresh and (job is None or not job.active)
        if (over or (mine and said is not None and said.state == "done")) and self._is_done(node):
            self._done(node)
        elif mine and said is not None and said.state == "failed":
            self._fail(node, said.reason, placed.log)
        elif over:
            self._lost[node.key] = self._lost.get(node.key, 0) + 1
            if self._lost[node.key] >= PATIENCE:
                how = "is in the queue no more" if job is None else f"ended as {job}"
                self._fail(node, f"its job {placed.job} {how}, without a result", placed.log)
        else:
            self._lost.pop(node.key, None)
            self._show(node, job, said if mine else None)

    def _is_done(self, node: Node) -> bool:
        """Whether the stores have all of a step: the truth, whatever job or sweep has brought it there."""
        return self._steps.has(node.key) and all(
            self._records.find(node.key, need.run.run_key) is not None for need in node.needs
        )

    def _show(self, node: Node, job: Queued | None, said: Said | None) -> None:
        at_work = said is not None and said.state in ("running", "done") and (job is None or not job.waits)
        if at_work and said is not None:
            if node.key not in self._begun:
                self._begun[node.key] = time.monotonic()
                self._view.start(node)
            if said.total:
                self._view.progress(node, said.iteration, said.total)
            if said.reason and self._told.get(node.key) != said.reason:
                self._view.note(f"{node.name}: {said.reason}")
            self._told[node.key] = said.reason
        elif node.key in self._begun and job is not None and job.waits:
            del self._begun[node.key]
            far = f"at iteration {said.iteration} of {said.total}" if said is not None and said.total else "begun"
            self._view.back(node, f"job {job.job} is back in the queue ({far}): {job}")

    def _done(self, node: Node) -> None:
        del self._waiting[node.key]
        self._finished += 1
        if node.key not in self._begun:
            self._view.start(node)
            self._view.progress(node, 0, node.iterations)  # a job that was through between two looks
        self._view.done(node, time.monotonic() - self._begun.pop(node.key, time.monotonic()))

    def _fail(self, node: Node, reason: str, log: Path | None) -> None:
        del self._waiting[node.key]
        self._failures.append(Failure(node, reason, log))
        self._view.failed(node, reason, log)
        for later in [entry for entry in self._waiting.values() if entry.previous == node.key]:
            self._fail(later, f"not tried: {node.name} failed", None)

    def _say_what_goes_on(self) -> None:
        names = ",".join(sorted({self._placed[key].place.name for key in self._waiting}))
        jobs = {self._placed[key].job for key in self._waiting}
        self._view.note(
            f"{len(jobs)} jobs stay on the cluster and go on; the same command watches them again, "
            f"`scancel --name={names}` ends them"
        )
