"""Fetching weights from a server with whims."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cispbench.harness.models import weights_download, weights_table
from cispbench.harness.models.weight_files import file_sha256
from cispbench.harness.models.weights_download import fetch
from cispbench.harness.runs.weights_choice import choose_weights
from cispbench.results.checked_json import read_checked
from cispbench.splits.errors import UsageError, WeightsError

CONTENT = os.urandom(700_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``whims`` are what goes wrong, one per request; ``requests`` are the ranges asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.whims: list[str] = []
        self.requests: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.requests.append(asked)
        whim = server.whims.pop(0) if server.whims else ""
        if whim.isdigit():
            self.send_error(int(whim))
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and whim != "ignore range" else 0  # type: ignore[index]
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 7 if whim == "another range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        if whim != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if whim == "cut" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which the tests do not sit out."""
    waits: list[float] = []
    monkeypatch.setattr(weights_download.time, "sleep", waits.append)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return waits


@pytest.fixture
def offer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]):
    """Make a table of one entry, ``net``, that the server serves."""

    def offer(url: str | None = None, **row: object) -> None:
        url = f"http://127.0.0.1:{server.server_port}/net-1f2e.pth" if url is None else url
        row = {"url": url, "architecture": "net", "normalise": "half", "source": "s", "licence": "MIT"} | row
        (tmp_path / "weights.yaml").write_text(json.dumps({"net": row}))  # YAML, all words quoted
        monkeypatch.setattr(weights_table, "TABLE", tmp_path / "weights.yaml")

    offer(sha256=SHA256)
    return offer


def test_a_file_is_fetched_once(offer, server: Server, tmp_path: Path) -> None:
    shown: list[tuple[int, int | None]] = []
    path = fetch("net", tmp_path / "new" / "folder", progress=lambda done, total: shown.append((done, total)))
    assert path == tmp_path / "new" / "folder" / "net-1f2e.pth"
    assert path.read_bytes() == CONTENT
    assert shown[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in shown] == sorted({done for done, _ in shown})
    assert fetch("net", path.parent) == path
    assert server.requests == [None]
    assert not list(path.parent.glob("*.part"))


def test_a_cut_connection_is_resumed(offer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.whims = ["cut", "cut"]
    said: list[str] = []
    path = fetch("net", tmp_path, note=said.append)
    assert path.read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + (len(CONTENT) - half) // 2}-"]
    assert waits == [1, 2]
    assert "350000 of 700001 bytes" in said[0]
    assert "again in 1 s" in said[0]


def test_what_an_earlier_process_left_is_resumed(offer, server: Server, tmp_path: Path) -> None:
    (tmp_path / "net-1f2e.pth.part").write_bytes(CONTENT[:1000])
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-"]


def test_a_server_without_ranges_starts_anew(offer, server: Server, tmp_path: Path) -> None:
    server.whims = ["cut", "ignore range"]
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={len(CONTENT) // 2}-"]


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"])
def test_a_part_with_nothing_to_add_starts_anew(offer, server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "net-1f2e.pth.part").write_bytes(left)
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(left)}-", None]


def test_a_wrong_range_starts_anew(offer, server: Server, tmp_path: Path) -> None:
    server.whims = ["cut", "another range"]
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] is None


def test_a_busy_server_is_asked_again(offer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.whims = ["503", "503"]
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    assert waits == [1, 2]


def test_patience_ends(offer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.whims = ["503"] * 9
    with pytest.raises(WeightsError, match="503"):
        fetch("net", tmp_path, retries=3)
    assert waits == [1, 2, 4]
    assert len(server.requests) == 4


def test_a_missing_file_is_not_asked_for_again(offer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.whims = ["404"]
    with pytest.raises(WeightsError, match="404"):
        fetch("net", tmp_path)
    assert (len(server.requests), waits) == (1, [])


def test_a_length_that_is_not_told_does_not_matter(offer, server: Server, tmp_path: Path) -> None:
    server.whims = ["no length"]
    totals = set()
    assert fetch("net", tmp_path, progress=lambda _, total: totals.add(total)).read_bytes() == CONTENT
    assert totals == {None}


def test_without_a_network_the_error_says_what_to_do(offer, server: Server, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/models/net.pth"
    offer(url=url, sha256=SHA256)
    with pytest.raises(WeightsError) as caught:
        fetch("net", tmp_path, retries=1, timeout=2)
    for part in (url, "net.pth", str(tmp_path), "--weights FILE", "--weights none"):
        assert part in str(caught.value)


def test_a_file_url_works(offer, tmp_path: Path, waits: list[float]) -> None:
    source = tmp_path / "a mirror" / "net.pth"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    offer(url=source.as_uri(), sha256=None, sha256_prefix=SHA256[:8], bytes=len(CONTENT))
    (tmp_path / "net.pth.part").write_bytes(b"left")
    assert fetch("net", tmp_path).read_bytes() == CONTENT
    source.unlink()
    (tmp_path / "net.pth").unlink()
    with pytest.raises(WeightsError, match="No such file"):
        fetch("net", tmp_path)
    assert waits == []


def test_a_wrong_download_is_removed(offer, server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(WeightsError, match="was removed") as caught:
        fetch("net", tmp_path)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(server.content).hexdigest() in str(caught.value)
    assert not list(tmp_path.glob("net*"))
    server.content = CONTENT
    assert fetch("net", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("row", [{"sha256": SHA256}, {"sha256_prefix": SHA256[:8]}, {"sha256": None, "bytes": 700_001}])
def test_a_file_that_is_there_is_checked(offer, server: Server, tmp_path: Path, row: dict[str, object]) -> None:
    offer(**row)
    (tmp_path / "net-1f2e.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"and 700000 bytes, those of http.* was removed") as caught:
        fetch("net", tmp_path)
    assert str(row.get("bytes") or SHA256[:8]) in caught.value.message
    assert not (tmp_path / "net-1f2e.pth").exists()
    assert server.requests == []


def test_without_a_checksum_the_user_decides(
    offer, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(sha256=None, file="vit.safetensors")
    with pytest.raises(WeightsError, match="cannot be verified"):
        fetch("net", tmp_path)
    assert server.requests == []
    (tmp_path / "vit.safetensors.part").write_bytes(CONTENT[:1000])
    path = fetch("net", tmp_path, allow_unverified=True)
    assert path == tmp_path / "vit.safetensors"
    assert server.requests == [None]
    out, err = capsys.readouterr()
    assert out == ""
    assert SHA256 in err
    assert file_sha256(path) == SHA256
    # Once it is there, by the user's choice or hand, it is used.
    assert fetch("net", tmp_path) == path
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("row", [{"sha256": None}, {"sha256_prefix": SHA256[:8]}])
def test_the_checksum_of_the_first_use_holds_ever_after(
    offer, server: Server, tmp_path: Path, row: dict[str, object]
) -> None:
    offer(**row)
    lines: list[str] = []
    path = fetch("net", tmp_path, allow_unverified=True, note=lines.append)
    assert len(lines) == 1
    assert SHA256 in lines[0]
    assert "compared from now on" in lines[0]
    kept = tmp_path / "net-1f2e.pth.first-use.json"
    assert read_checked(kept)["digest"] == SHA256
    other = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    changed = hashlib.sha256(other).hexdigest()
    offer(sha256=None)
    path.write_bytes(other)
    with pytest.raises(WeightsError, match="they have changed") as caught:
        fetch("net", tmp_path)
    assert all(text in str(caught.value) for text in (SHA256, changed, str(kept)))
    assert path.read_bytes() == other  # a file of the user's own is left to the user
    # The same for a server that serves another file by now; it does not get to the file's place.
    path.unlink()
    server.content = other
    with pytest.raises(WeightsError, match="they have changed"):
        fetch("net", tmp_path, allow_unverified=True)
    assert not path.exists()
    kept.unlink()
    assert fetch("net", tmp_path, allow_unverified=True, note=lines.append).read_bytes() == other
    assert changed in lines[1]


def test_a_file_put_there_by_hand_is_kept_in_mind_too(offer, server: Server, tmp_path: Path) -> None:
    offer(sha256=None)
    (tmp_path / "net-1f2e.pth").write_bytes(CONTENT)
    fetch("net", tmp_path, note=lambda _: None)
    (tmp_path / "net-1f2e.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(WeightsError, match="they have changed"):
        fetch("net", tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"digest": 3}', b"\xff"])
def test_a_damaged_first_use_is_no_first_use(offer, tmp_path: Path, damage: bytes) -> None:
    offer(sha256=None)
    (tmp_path / "net-1f2e.pth").write_bytes(CONTENT)
    (tmp_path / "net-1f2e.pth.first-use.json").write_bytes(damage)
    with pytest.raises(WeightsError, match=r"net-1f2e\.pth\.first-use\.json cannot be read"):
        fetch("net", tmp_path)


def test_the_weights_of_mbs_say_in_one_line_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checksum of them is published") as caught:
        choose_weights("pretrained", "segmenter-vit-b16", tmp_path, named=False)
    message = str(caught.value)
    assert "\n" not in message
    assert "timm vit_base_patch16_384.augreg_in21k_ft_in1k" in message
    assert "https://huggingface.co/timm/vit_base_patch16_384.augreg_in21k_ft_in1k/" in message
    assert f"{tmp_path}/vit_base_patch16_384.augreg_in21k_ft_in1k.safetensors" in message
    assert "kept at the first use and compared at every later use" in message


def test_an_unknown_name_is_a_usage_error(offer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'net'"):
        fetch("nett", tmp_path)


def test_a_folder_that_cannot_be_made_is_said(offer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot store"):
        fetch("net", tmp_path / "file" / "below")


def test_a_full_disk_is_not_taken_for_a_broken_network(
    offer, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "net-1f2e.pth.part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match="No space left"):
        fetch("net", tmp_path)
    assert waits == []


def test_two_processes_fetch_once(offer, server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=("net", tmp_path), kwargs={"note": lambda _: None}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "net-1f2e.pth").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_checksum_of_digits_alone_that_is_not_quoted_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "weights.yaml"
    row = "{url: 'https://a/net', architecture: net, normalise: half, source: s, licence: MIT, sha256_prefix: 12345678}"
    table.write_text(f"net: {row}")
    with pytest.raises(WeightsError, match="sha256_prefix: 12345678, which is no text"):
        weights_table.load_table(table)
