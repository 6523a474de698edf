"""Set damaged records aside before a run or a sweep reads them: both can write them anew from the stored steps."""

from __future__ import annotations

from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.progress import ProgressView
from cispbench.results.checked_json import ChecksumError, verify_checksum
from cispbench.results.record import DamagedRecordError, StepRecord
from cispbench.results.record_files import read_file
from cispbench.results.store import Store


def set_damaged_records_aside(records: Store, view: ProgressView, run_key: str | None = None) -> None:
    """Rename every record whose file is not what was written, and warn of it.

    ``run_key``: only the records of this run. A record that breaks a rule but is as it was written stays: it did not
    come from a disk, so that a person has to look at it. Raises StoreError for a file that cannot be read or renamed.
    """
    for path in records.files(run_key):
        data = read_file(path)
        try:
            verify_checksum(data)  # a fraction of the time that parsing takes
        except ChecksumError:
            try:
                StepRecord.from_json(data, str(path))  # a sound record of an older schema has no checksum
            except DamagedRecordError as damage:
                aside = set_aside(path)
                view.warn(f"{damage.message} It is kept as {aside.name}, and the step is recorded anew.")
