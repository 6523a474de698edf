"""The memory of a step: its method chooses it once, and it is kept with the step, for the next step and the record.

What was chosen is written to the step's work folder at once. A step that is started again, before its first checkpoint
too, has the same exemplars without a second choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cispbench.harness.data.source import Source
from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.training.other_code import TrainedBy, is_other_code
from cispbench.results.atomic import explain_os_error
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.results.record_fields import BYTES_OF_A_PIXEL, ExemplarsUsed
from cispbench.splits.errors import MethodError
from cispbench.splits.strict_fields import read_fields


@dataclass(frozen=True)
class Candidates:
    """What a method may choose from: ``kept`` of the step before, and the ``images`` of that step."""

    step: int
    kept: tuple[Exemplar, ...]
    images: tuple[str, ...]

    def require(self, chosen: object, memory: Memory, method: str) -> list[Exemplar]:
        """Return what the method has chosen. Raises MethodError unless it is at most ``memory.size`` of these."""
        rule = "A method returns a list of Exemplar(id, step, classes) from select_exemplars."
        if not isinstance(chosen, (list, tuple)) or not all(isinstance(one, Exemplar) for one in chosen):
            raise MethodError(f"the memory of {method} is no list of exemplars.", hint=rule)
        found = [Exemplar(str(one.id), int(one.step), tuple(map(int, one.classes))) for one in chosen]
        if len(found) > memory.size:
            raise MethodError(
                f"{method} has chosen {len(found)} exemplars after step {self.step}; its memory holds {memory.size}.",
                hint="Return at most memory().size of them.",
            )
        known = {(one.id, one.step) for one in self.kept} | {(image, self.step) for image in self.images}
        for one, times in Counter((one.id, one.step) for one in found).items():
            if one not in known or times > 1:
                fault = "is neither in its memory nor an image of that step" if one not in known else "is there twice"
                raise MethodError(
                    f"{method} has chosen the exemplar {one[0]!r} of step {one[1]} after step {self.step}, which "
                    f"{fault}.",
                    hint=f"{rule} Its step is the one that the image was selected for.",
                )
        return found


def read_chosen(path: Path, key: str) -> tuple[list[Exemplar], TrainedBy]:
    """Return what a file says was chosen for the step ``key``, and by which code.

    Raises OSError, or for a damaged file whatever reading its content raises.
    """
    content = read_checked(path)
    found = [read_fields(Exemplar, one, "an exemplar") for one in content["exemplars"]]
    if content["key"] != key:
        raise ValueError("it is that of another step")
    name, code = content["code"]
    return found, (name, code)


def load_chosen(path: Path, key: str, by: TrainedBy, view: ProgressView) -> list[Exemplar] | None:
    """Return what was chosen for the step ``key`` before it was interrupted; None where nothing is known.

    ``by``: the method and the digest of its code. A file that is damaged, or that other code has written, is set aside
    and told.
    """
    try:
        found, (name, code) = read_chosen(path, key)
        if not is_other_code(by, (name, code)):
            return found
        why = f"was written by other code of {by[0]}"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain_os_error("read", path, error) from error
    except Exception as error:  # noqa: BLE001 (a checksum, a type, a field: damage of any kind)
        why = f"is damaged ({error})"
    view.warn(f"the memory {path} {why}. It is kept as {set_aside(path).name} and chosen anew.")
    return None


def save_chosen(path: Path, key: str, by: TrainedBy, chosen: Sequence[Exemplar]) -> None:
    """Write what was chosen for the step ``key``. Raises StoreError."""
    write_checked(path, {"key": key, "code": list(by), "exemplars": [asdict(one) for one in chosen]})


def memory_in(manifest: Mapping[str, Any]) -> tuple[Exemplar, ...]:
    """Return the memory that a step's manifest keeps; none where the step has none."""
    return tuple(read_fields(Exemplar, one, "an exemplar of the manifest") for one in manifest.get("memory", ()))


def memory_part(chosen: Sequence[Exemplar], source: Source) -> dict[str, Any]:
    """Return what a manifest says of a step's memory: which exemplars, how many images, and their bytes.

    The bytes are those of the decoded pixels, of whatever source: 8 bits for each of red, green, blue and label.
    """
    if not chosen:
        return {}
    pixels = sum(source.read("train", one.id)[1].numel() for one in chosen)
    used = ExemplarsUsed(len(chosen), BYTES_OF_A_PIXEL * pixels)
    return {"memory": [asdict(one) for one in chosen], "exemplars": asdict(used)}
