"""The table of the weights that can be fetched by name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cispbench.harness.models.weights_table import load_table
from cispbench.splits.errors import WeightsError


def test_fetching_needs_no_torch() -> None:
    module = "cispbench.harness.models.weights_download"
    code = f"import sys, {module}; print('torch' in sys.modules, 'safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_table_is_in_order() -> None:
    table = load_table()
    assert len({entry.file_name for entry in table.values()}) == len(table) == 8
    for entry in table.values():
        assert re.fullmatch(r"([0-9a-f]{64})?", entry.sha256 or "")
        assert entry.normalise == ("half" if entry.architecture.startswith("vit") else "imagenet")
        assert entry.url.startswith("https://")
        in_the_name = re.search(r"-([0-9a-f]{8})\.pth$", entry.file_name)
        assert entry.digits[:8] == (in_the_name[1] if in_the_name else "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha265": "00"}, "unknown field 'sha265'.*Did you mean 'sha256'"),
        ({"normalise": "none"}, "normalise: none"),
        ({"url": "ftp://example.org/net.pth"}, "url: ftp:"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    row = {
        "url": "https://example.org/net.pth",
        "architecture": "net",
        "normalise": "half",
        "source": "s",
        "licence": "MIT",
    }
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump({"net": row}))
    with pytest.raises(WeightsError, match="lack a checksum"):
        load_table(path)
    path.write_text(yaml.safe_dump({"net": row | {"sha256": None}}))
    assert load_table(path)["net"].digits == ""
    path.write_text(yaml.safe_dump({"net": row | {"sha256": None} | change}))
    with pytest.raises(WeightsError, match=message):
        load_table(path)


def test_a_field_left_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_text("net:\n  url: https://example.org/net.pth\n  sha256: null\n")
    with pytest.raises(WeightsError, match="lack architecture, licence, normalise, source"):
        load_table(tmp_path / "weights.yaml")
