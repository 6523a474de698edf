"""Many files are read in several processes: in order, with the error that one process would give, and never at risk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.store import Store

# In a process of its own: this one has loaded torch, and is not to be copied.
HEAD = """
import json, os, signal, sys, threading, time
from cispbench.reports.tables import processes
from cispbench.reports.tables.processes import in_order
from cispbench.splits.errors import StoreError

processes._cores = lambda: 3

def pids(items):
    time.sleep(0.1)  # or one process might have done all parts before the next one begins
    return [(item, os.getpid()) for item in items]

def refuse(items):
    for item in items:
        if item >= 40:
            raise StoreError(f"item {item}.", hint="Leave it.")
    return list(items)

def die(items, first=os.getpid()):
    if os.getpid() != first:
        os.kill(os.getpid(), signal.SIGKILL)
    return pids(items)
"""


def run(script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_results_are_in_order_and_come_from_several_processes() -> None:
    found, parent = run("print(json.dumps([in_order(pids, range(100), 10), os.getpid()]))")
    assert [item for item, _ in found] == list(range(100))
    used = {pid for _, pid in found}
    assert 2 <= len(used) <= 3 and parent not in used


def test_few_items_another_thread_or_torch_leave_it_to_one_process() -> None:
    script = """
few = in_order(pids, range(19), 10)
waiting = threading.Event()
thread = threading.Thread(target=waiting.wait)
thread.start()
threaded = in_order(pids, range(100), 10)
waiting.set()
thread.join()
sys.modules["torch"] = sys
print(json.dumps([few, threaded, in_order(pids, range(100), 10), os.getpid()]))
"""
    *found, parent = run(script)
    assert [len(entries) for entries in found] == [19, 100, 100]
    assert {pid for entries in found for _, pid in entries} == {parent}


def test_the_first_error_is_told_as_from_one_process() -> None:
    script = """
try:
    in_order(refuse, range(100), 10)
except StoreError as error:
    print(json.dumps([error.message, error.hint]))
"""
    assert run(script) == ["item 40.", "Leave it."]


def test_what_a_killed_process_leaves_is_done_here() -> None:
    found, parent = run("print(json.dumps([in_order(die, range(100), 10), os.getpid()]))")
    assert [item for item, _ in found] == list(range(100))
    assert {pid for _, pid in found} == {parent}


@pytest.mark.parametrize("after", [0, 1, 2])
def test_processes_that_cannot_be_started_are_done_without(after: int) -> None:
    script = f"""
fork, started = os.fork, []

def scarce():
    if len(started) == {after}:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    started.append(None)
    return fork()

os.fork = scarce
print(json.dumps([in_order(pids, range(100), 10), os.getpid()]))
"""
    found, parent = run(script)
    assert [item for item, _ in found] == list(range(100))
    assert {pid for _, pid in found} == {parent}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_who_is_ended_takes_the_others_along_at_once(sent: signal.Signals, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path

def sleep(items):
    (Path({str(tmp_path)!r}) / str(os.getpid())).touch()
    time.sleep(60)

in_order(sleep, range(100), 10)
"""
    process = subprocess.Popen([sys.executable, "-c", HEAD + script], stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    if sent is signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
    else:
        process.send_signal(sent)
    end = time.monotonic() + 20
    assert process.wait(20) != 0
    while any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()):
        assert time.monotonic() < end, "a process has outlived the first one"
        time.sleep(0.02)


def test_a_store_read_in_several_processes_is_the_same(mixed_store: Store) -> None:
    script = f"""
from pathlib import Path
from cispbench.reports.tables import scoring
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.data import cell_data, run_data
from cispbench.results.store import Store

texts = []
for scoring._LEAST in (1, 10**9):
    runs = scoring.load_runs(Store(Path({str(mixed_store.path)!r})))
    texts.append([json.dumps([run_data(run) for run in runs]), json.dumps([cell_data(cell) for cell in cells(runs)])])
print(json.dumps(texts))
"""
    several, one = run(script)
    assert several == one
    assert len(json.loads(one[0])) >= 2
