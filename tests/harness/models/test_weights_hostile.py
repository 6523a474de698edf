"""Files of weights made to harm their reader: each is refused by the name of what is wrong, before memory is taken."""

from __future__ import annotations

import os
import resource
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.models.released import translate
from cispbench.harness.models.weight_files import file_sha256, read_state
from cispbench.splits.errors import WeightsError

SHAPE = b"K\x00K\x07\x85"  # offset 0 and the shape (7,) in a pickle, with room for another number after K
Edit = Callable[[str, bytes], bytes]


def saved(folder: Path, content: Any, edit: Edit | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """Save ``content``, and write its archive anew with each part edited."""
    path = folder / "net.pth"
    torch.save(content, path)
    if edit is not None:
        with zipfile.ZipFile(path) as archive:
            parts = [(name, archive.read(name)) for name in archive.namelist()]
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in parts:
                archive.writestr(name, edit(name, data))
    return path


def pickled(old: bytes, new: bytes) -> Edit:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new)

    return edit


def refused(path: Path, says: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=says) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(1).expand(10**6, 10**4), "10,000,000,000 values in 1 places"),
        (torch.ones(6).as_strided((3, 4), (1, 1)), "12 values in 6 places"),
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor, which is a kind of tensor that is not read"),
        (torch.empty(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8"),
        (torch.ones(2, dtype=torch.complex64), "net holds torch.complex64"),
        (torch.ones(2, dtype=torch.uint16), "uint16|_rebuild_tensor_v3"),
        (torch.tensor([1.0, float("nan")]), "net holds values that are not finite"),
        (torch.tensor([float("-inf")]), "net holds values that are not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "net holds values that are not finite"),
    ],
)
def test_a_tensor_that_training_cannot_have_left_is_refused(tmp_path: Path, tensor: Tensor, says: str) -> None:
    refused(saved(tmp_path, {"net": tensor}), says)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    refused(saved(tmp_path, {"net": tensor}), "torch.per_tensor_affine, which is a kind of tensor that is not read")


def test_tensors_that_overlap_are_refused_and_parts_of_one_are_not(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    refused(saved(tmp_path, {"a": whole[:6], "b": whole[4:]}), "b overlaps another tensor")
    state = {"a": whole[:6], "b": whole[6:], "c": torch.arange(12.0).reshape(3, 4).t(), "d": torch.ones(0)}
    read = read_state(saved(tmp_path, state))
    assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", ["a\x1b[2J", "caf\u00e9", "a b", "", "k" * 301])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, {name: torch.ones(1)})
    refused(path, "no name of a parameter")
    with pytest.raises(WeightsError) as caught:
        read_state(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("shape", [b"K\x09", b"J\x00\x00\x00\x10", b"\x8a\x07\x00\x00\x00\x00\x00\x00\x10"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_shape_beyond_the_stored_values_is_refused(tmp_path: Path, shape: bytes, legacy: bool) -> None:
    new = b"K\x00" + shape + b"\x85"
    if not legacy:
        refused(saved(tmp_path, {"net": torch.ones(7)}, pickled(SHAPE, new)), "cannot read")
        return
    path = tmp_path / "old.pth"
    torch.save({"net": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state(path)["net"], torch.ones(7))
    path.write_bytes(path.read_bytes().replace(SHAPE, new))
    refused(path, "cannot read")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"net": torch.zeros(10**8)}, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    refused(path, "is compressed, as torch.save never does")


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    weights = torch.arange(1000.0)
    path = saved(tmp_path, {"net": weights})
    content = bytearray(path.read_bytes())
    content[content.find(weights.numpy().tobytes()) + 101] ^= 4
    path.write_bytes(content)
    refused(path, "data/0' is damaged: its checksum does not match")


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"net": torch.ones(7)})
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("net/data/0", torch.zeros(7).numpy().tobytes())
    refused(path, "an archive with two meanings")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
            "__builtin__.bytearray, which is no tensor",
        ),
        (b"ctorch\nFloatTensor\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R", "torch.FloatTensor"),
        (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R", "os.system, which is no tensor"),
        (b"c_codecs\nencode\nX\x02\x00\x00\x00hiX\x03\x00\x00\x00HEX\x86R", "a text in a code"),
        (b"cnumpy\ndtype\nX\x0b\x00\x00\x00V2000000000\x89\x88\x87R", "damaged"),
    ],
)
def test_what_a_pickle_may_call_is_what_tensors_need(tmp_path: Path, call: bytes, says: str) -> None:
    refused(saved(tmp_path, {"net": torch.ones(7), "x": 9}, pickled(b"K\x09", call)), says)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    pipe, endless, folder = (tmp_path / f"{name}{suffix}" for name in ("pipe", "endless", "folder"))
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    folder.mkdir()
    for path in (pipe, endless, folder):
        for read in (read_state, file_sha256):
            errors: list[str] = []
            # A thread, so that a reader that waits fails this test and not the whole suite.
            reader = threading.Thread(target=_read, args=(read, path, errors), daemon=True)
            reader.start()
            reader.join(10)
            assert errors, f"{path} keeps its reader waiting"
            assert "not a plain file" in errors[0]


def _read(read: Callable[[Path], Any], path: Path, errors: list[str]) -> None:
    try:
        read(path)
    except WeightsError as error:
        errors.append(str(error))


@pytest.mark.parametrize("number", ["99999999999", "9" * 200])
def test_a_huge_step_number_takes_no_memory(number: str) -> None:
    state = {"cls.0.bias": torch.zeros(3), f"cls.{number}.bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match="but not of group 1"):
        translate(state, "abn-deeplab", "net.pth")
    with pytest.raises(WeightsError, match=r"net\.pth"):
        translate({f"body.mod{number}.block{number}.x": torch.zeros(3)}, "abn-deeplab", "net.pth")


def test_two_names_of_one_parameter_are_refused() -> None:
    state = {"cls.0.bias": torch.zeros(3), "body.mod2.block1.convs.bn1.bias": torch.zeros(3)}
    with pytest.raises(
        WeightsError, match=r"holds body\.mod2\.block1\.convs\.bn1\.bias again, as body\.mod2\.block1\.bn"
    ):
        translate(state | {"body.mod2.block1.bn1.bias": torch.ones(3)}, "abn-deeplab", "net.pth")
