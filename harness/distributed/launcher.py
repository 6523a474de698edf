"""Start the processes of one step on this machine, and report the first error among them.

torch's elastic launcher starts them, watches them, and ends all if one fails. It reports errors as tracebacks in its
own log; this file passes them on instead as the errors that they were, with message, hint and exit code.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cispbench.harness.distributed.group import LostProcessError
from cispbench.splits.errors import CispbenchError, RunError, UsageError

LOCAL = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def start(devices: int, task: Callable[..., Any], choices: Mapping[str, Any]) -> Any:
    """Call ``task(**choices)`` in one process for each device, and return the first one's result.

    An error in one process ends all, and is raised here with the same message, hint and exit code. Ctrl-C and SIGTERM
    end all of them, too.
    """
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=f"{LOCAL}:0", local_addr=LOCAL,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="cispbench-devices-") as folder, _quiet():
        try:
            results: dict[int, Any] = elastic_launch(config, _work)(task, dict(choices), folder)
        except ChildFailedError as error:
            _raise_first(Path(folder), {rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            interrupted = error.sigval
        else:
            return results[0]
    signal.raise_signal(interrupted)  # The launcher has swallowed it; our own handler must see it.
    raise KeyboardInterrupt


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the launcher's log, which repeats our errors, and restore the signal handlers that it replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _work(task: Callable[..., Any], choices: dict[str, Any], folder: str) -> Any:
    """Run the task in one of the processes; write its error to a file for the process that started it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # The host name may not resolve.
    rank = int(os.environ["RANK"])
    code = 1
    try:
        result = task(**choices)
        return result if rank == 0 else None
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except LostProcessError:
        pass  # The process that was lost reports the cause.
    except CispbenchError as error:
        _note(folder, rank, error.message, error.hint, error.exit_code)
    except Exception as error:  # noqa: BLE001 (any error must end the other processes, too)
        traceback.print_exc()
        _note(folder, rank, f"a process failed: {type(error).__name__}: {error}", "See the traceback above.", 1)
    # Not inside an except block: the error's traceback keeps the loaders' worker processes alive. And not by raising:
    # Python would destroy the process group on its way out, which waits for processes that have ended.
    sys.stderr.flush()
    os._exit(code)


def _note(folder: str, rank: int, message: str, hint: str | None, code: int) -> None:
    note = {"when": time.time(), "message": message, "hint": hint, "exit_code": code}
    draft = Path(folder) / f".{rank}"
    draft.write_text(json.dumps(note), encoding="utf-8")
    draft.rename(Path(folder) / f"{rank}.json")


def _raise_first(folder: Path, codes: Mapping[int, int]) -> NoReturn:
    """Raise the first error that a process wrote, or else say how a process ended."""
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if notes:
        first = min(notes, key=lambda note: note["when"])
        kind = UsageError if first["exit_code"] == UsageError.exit_code else RunError
        raise kind(first["message"], hint=first["hint"])
    rank, code = next(iter(codes.items()))
    how = f"ended with exit code {code}"
    if code < 0:
        memory = ", by hand or because the memory is used up" if -code == signal.SIGKILL else ""
        how = f"was killed by {signal.Signals(-code).name}{memory}"
    raise RunError(
        f"the process of device {rank} {how}; the others were ended.",
        hint="The same command goes on from the last checkpoint.",
    )
