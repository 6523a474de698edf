"""Start the processes of one step on this machine, and tell what became of them."""

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
    """Call ``task(**choices)`` in a process a device, by torch's elastic launcher; return the first one's result.

    An error in any of them ends all, and is raised here as it was raised there: a CispbenchError by its message, hint
    and exit code. Ctrl-C and SIGTERM end all of them, too.
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
    signal.raise_signal(interrupted)  # as if it had come to us alone
    raise KeyboardInterrupt


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher from logging what we tell ourselves, and put its signal handlers away again."""
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
    """Do the task in one of the processes; what goes wrong is noted for the one that started it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name may lead nowhere
    rank = int(os.environ["RANK"])
    code = 1
    try:
        result = task(**choices)
        return result if rank == 0 else None
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except LostProcessError:
        pass  # the one that is lost has the error to tell
    except CispbenchError as error:
        _note(folder, rank, error.message, error.hint, error.exit_code)
    except Exception as error:  # noqa: BLE001 (whatever it is, the others have to be ended)
        traceback.print_exc()
        _note(folder, rank, f"a process failed: {type(error).__name__}: {error}", "See the traceback above.", 1)
    # Out of the handlers, for until then an error keeps the loaders' processes. Not by an exception: the process
    # group's own end would wait for processes that are gone.
    sys.stderr.flush()
    os._exit(code)


def _note(folder: str, rank: int, message: str, hint: str | None, code: int) -> None:
    note = {"when": time.time(), "message": message, "hint": hint, "exit_code": code}
    draft = Path(folder) / f".{rank}"
    draft.write_text(json.dumps(note), encoding="utf-8")
    draft.rename(Path(folder) / f"{rank}.json")


def _raise_first(folder: Path, codes: Mapping[int, int]) -> NoReturn:
    """Raise what ended the processes: the first of the errors they noted, or how one of them died."""
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
