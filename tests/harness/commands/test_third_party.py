"""Networks and data sets that other packages bring along, seen through the command line; plug-ins that are wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.source import find_source
from cispbench.splits.classes import class_names, palette
from cispbench.splits.datasets import Dataset, dataset, datasets, read_dataset
from cispbench.splits.errors import CispbenchError, SettingError
from cispbench.splits.selection import golden_settings, golden_steps, select_images
from cispbench.splits.settings import list_settings, parse_setting

NETWORK = '''
from cispbench.harness.models.catalogue import ModelSpec


def build(image_size):
    from torch import nn

    from cispbench.harness.models.deeplab import DeepLabV3
    from cispbench.harness.models.interface import Encoder

    class Strided(Encoder):
        """Two convolutions without batch norm."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
            self.width = 16

        def forward(self, images):
            shallow = self.first(images)
            deep = self.second(shallow.relu())
            return deep.relu(), (shallow, deep)

    return DeepLabV3(Strided(), hidden=8, rates=(1,))


NET = ModelSpec(
    name="plug-net", family="deeplabv3", encoder="strided", build=build, least_images=2, batch_norm_in=("decoder",),
    offers=frozenset({"linear"}),
)
NUMBER = 7
'''
DATA = """
from cispbench.harness.data.layout import Layout, SplitFolders
from cispbench.splits.datasets import Dataset

TOYS = Dataset(
    name="toys", title="Toys", class_names=("ball", "car", "doll", "kite", "drum", "top"), layout="toy_plug_in:LAYOUT",
    tasks={"2-2": ("overlapped", "disjoint"), "4-1": ("overlapped",)},
    orders={"4-1": {"b": ((6, 5, 4, 3), (2,), (1,))}},
)
LAYOUT = Layout(
    folders=("toys", "."), markers=("pictures/train",), how_to_get="Ask for them.",
    list_pairs=SplitFolders(
        images={"train": "pictures/train", "val": "pictures/test"}, masks={"train": "masks/train", "val": "masks/test"},
        how_to_get="Ask for them.", image_suffix=".png",
    ),
)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make a module and its entry points known as an installer does."""

    def install(module, source, group, dist="plug", **targets):
        site = tmp_path / "site"
        notes = site / f"{dist}-1.dist-info"
        notes.mkdir(parents=True)
        (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1\n")
        lines = [f"{name.replace('_', '-')} = {module}:{target}" for name, target in targets.items()]
        (notes / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        parse_setting.cache_clear()

    yield install
    parse_setting.cache_clear()


@pytest.fixture
def plug_net(installed):
    installed("net_plug_in", NETWORK, "cispbench.models", plug_net="NET")


@pytest.fixture
def toys(installed, tmp_path):
    """Install the data set and write 12 and 6 images, each with two classes; return its root."""
    installed("toy_plug_in", DATA, "cispbench.datasets", toys="TOYS")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for part in ("pictures", "masks"):
            (tmp_path / "data" / "toys" / part / split).mkdir(parents=True)
        for number in range(count):
            mask, image = np.zeros((48, 64), np.uint8), rng.integers(90, 110, (48, 64, 3)).astype(np.uint8)
            for side, label in enumerate((number % 6 + 1, (number + 1) % 6 + 1)):
                mask[8:40, 32 * side : 32 * side + 28] = label
                image[8:40, 32 * side : 32 * side + 28] = (label * 40, 255 - label * 40, 100)
            Image.fromarray(image).save(tmp_path / "data" / "toys" / "pictures" / split / f"i{number}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "toys" / "masks" / split / f"i{number}.png")
    return tmp_path / "data"


def test_a_network_of_another_package_is_listed_shown_and_trained(commands, plug_net):
    rows = json.loads(commands.succeed(["list", "models", "--json"]).stdout)
    (row,) = [row for row in rows if row["model"] == "plug-net"]
    assert row == {
        "model": "plug-net", "family": "deeplabv3", "encoder": "strided", "pre-trained weights": None,
        "offers": "linear",
    }  # fmt: skip
    shown = commands.succeed(["show", "mib", "--model", "plug-net"]).stdout
    assert "model: plug-net" in shown
    commands.succeed(commands.tiny("--model", "plug-net", method="finetune"))
    assert {json.loads(path.read_text())["model"]["name"] for path in commands.records().values()} == {"plug-net"}
    said = commands.refused(1, commands.tiny("--model", "plug-net", "--weights", "pretrained", method="finetune"))
    assert "there are no pre-trained weights for plug-net" in said
    commands.refused(2, commands.tiny("--model", "plug-nett", method="finetune"), "Did you mean 'plug-net'?")
    one = ("--set", "optim.batch=1")
    commands.refused(2, commands.tiny("--model", "plug-net", *one, method="finetune"), "batch norms of plug-net need 2")


def test_a_wrong_network_plug_in_is_an_error_that_says_so(commands, installed):
    installed("net_plug_in", NETWORK, "cispbench.models", plug_net="NET", other_net="NET", number="NUMBER", gone="GONE")
    show = ["show", "mib", "--model"]
    commands.refused(1, [*show, "other-net"], "'other-net' (net_plug_in:NET) calls itself 'plug-net'")
    commands.refused(1, [*show, "number"], "'number' (net_plug_in:NUMBER) is not a", "ModelSpec")
    commands.refused(1, [*show, "gone"], "'gone' (net_plug_in:GONE) cannot be imported")
    installed("twin_plug_in", NETWORK, "cispbench.models", dist="twin", plug_net="NET")
    message = commands.refused(1, [*show, "plug-net"], "the model 'plug-net' is registered more than once")
    assert "net_plug_in:NET, twin_plug_in:NET. Uninstall one of them." in message


def test_the_settings_of_another_packages_data_set(toys):
    setting = parse_setting("toys:overlapped-4-1")
    assert (setting.name, setting.dataset) == ("toys:overlapped-4-1", "toys")
    assert [step.classes for step in setting.steps] == [(1, 2, 3, 4), (5,), (6,)]
    assert parse_setting("overlapped-toys:4-1-b").steps[0].classes == (6, 5, 4, 3)
    assert [s.name for s in list_settings() if s.dataset == "toys"] == [
        "toys:overlapped-2-2", "toys:disjoint-2-2", "toys:overlapped-4-1",
    ]  # fmt: skip
    assert list(datasets()) == ["voc", "ade", "toys"]
    assert class_names("toys") == ("background", "ball", "car", "doll", "kite", "drum", "top")
    assert palette("toys")[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert (golden_settings("toys"), golden_steps(setting)) == ([], None)
    with pytest.raises(SettingError, match="Did you mean 'toys'"):
        parse_setting("toy:overlapped-4-1")


def test_an_installed_data_set_changes_the_meaning_of_no_other_name(toys):
    # The data set lists 2-2, and so does VOC: the name without a prefix stays VOC's, as in published records.
    assert parse_setting("overlapped-2-2").dataset == "voc"
    assert parse_setting("voc:overlapped-2-2").name == "overlapped-2-2"
    with pytest.raises(SettingError, match="fits voc and ade"):
        parse_setting("overlapped-4-1")


def test_images_of_another_packages_data_set_are_found_and_selected(toys, tmp_path):
    source = find_source("toys", toys, tmp_path / "cache")
    assert (source.kind, len(source.ids("train")), len(source.ids("val"))) == ("mini", 12, 6)
    presence = source.presence("train")
    assert presence["i0"] == {1, 2}
    setting = parse_setting("toys:overlapped-4-1")
    assert select_images(presence, setting, 1) == ["i10", "i3", "i4", "i9"]


def test_data_commands_on_another_packages_data_set(commands, toys):
    place = ("--dataset", "toys", "--data-root", str(toys), "--steps-dir", "steps")
    shown = commands.succeed(["data", "check", *place]).stdout
    assert "not compared: no figures are published for this data set." in shown
    assert "No file is broken; nothing was compared." in shown
    assert json.loads(commands.succeed(["data", "check", *place, "--json"]).stdout)["agrees"]
    commands.refused(
        2, ["data", "check", *place, "--setting", "toys:overlapped-4-1"], "no figures are published for toys:"
    )
    assert "Toys in" in commands.succeed(["data", "index", *place]).stdout
    (toys / "toys" / "masks" / "train" / "i3.png").write_bytes(b"none")
    result = commands.invoke(["data", "check", *place, "--decode"])
    assert result.exit_code == 1
    assert "i3.png is no PNG" in result.stdout
    listed = json.loads(commands.succeed(["list", "settings", "--json"]).stdout)
    assert [row["steps"] for row in listed if row["setting"] == "toys:overlapped-4-1"] == [3]


def test_a_training_on_another_packages_data_set(commands, toys):
    commands.data = toys
    words = commands.tiny("--setting", "toys:overlapped-4-1", method="finetune")
    commands.succeed(words)
    records = [json.loads(path.read_text()) for path in commands.records().values()]
    assert {(record["dataset"], record["setting"]) for record in records} == {("toys", "toys:overlapped-4-1")}
    assert {np.array(record["confusion"]).shape for record in records} == {(7, 7)}
    table = commands.succeed(["table", "--out", str(commands.out)]).stdout
    assert "toys:overlapped-4-1" in table
    commands.succeed(["leaderboard", "--out", str(commands.out)])
    assert "Toys" in (commands.out / "leaderboard.md").read_text()
    plan = commands.succeed(["sweep", "--methods", "finetune", "--settings", "toys:*", *words[5:7], "--data-root",
                             str(toys), "--plan", "--weights", "none", *commands.places()])  # fmt: skip
    assert "toys:overlapped-2-2" in plan.stdout
    quick = ["sweep", "--methods", "finetune", "--settings", "toys:overlapped-2-2", "--profile", "quick", "--plan"]
    commands.succeed([*quick, *commands.places()])


def test_a_record_of_a_data_set_that_is_no_longer_installed_is_named(commands, toys, monkeypatch):
    commands.data = toys
    commands.succeed(commands.tiny("--setting", "toys:overlapped-4-1", method="finetune"))
    monkeypatch.undo()  # the package is gone
    monkeypatch.chdir(commands.home)
    parse_setting.cache_clear()
    commands.refused(
        1, ["table", "--out", str(commands.out)], "step-2.json: unknown data set 'toys'", "Install the package"
    )


def facts(**changes: object) -> Dataset:
    given = {"name": "n", "title": "N", "class_names": ("a", "b", "c"), "layout": "m:L", "tasks": {"2-1": ()}}
    return Dataset(**given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "my-data"}, "a name is made of small letters, digits and _"),
        ({"class_names": ("a",)}, "it has 2 to 253 classes"),
        ({"class_names": ("a", "b", "b")}, "each with a name of its own"),
        ({"palette": ((0, 0, 0),)}, "1 colours for 3 classes and background"),
        ({"tasks": {"2-1": ("overlaped",)}}, "scenarios are overlapped"),
        ({"tasks": {"1-3": ()}}, "the task 1-3 does not fit: n has 3 classes, and the 2 left"),
    ],
)
def test_facts_of_a_data_set_that_contradict_each_other_are_refused(changes, message):
    assert facts().classes == 3
    with pytest.raises(CispbenchError, match=message):
        facts(**changes)


def test_an_entry_in_yaml_is_read_strictly(tmp_path):
    path = tmp_path / "n.yaml"
    text = 'name: n\ntitle: N\nclass_names: [a, b, c]\nlayout: "m:L"\ntasks: {"2-1": [overlapped]}\n'
    path.write_text(text + 'palette: ["000000", "ff0000", "00ff00", "0000ff"]\npublished: figures.yaml\n')
    found = read_dataset(path)
    assert (found.tasks, found.published) == ({"2-1": ("overlapped",)}, tmp_path / "figures.yaml")
    assert found.palette == ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
    path.write_text(text + "classnames: []\n")
    with pytest.raises(CispbenchError, match=r"unknown key 'classnames'\. Did you mean 'class_names'"):
        read_dataset(path)
    path.write_text("name: n\ntitle: N\n")
    with pytest.raises(CispbenchError, match=r"(?s)class_names is missing.*layout is missing.*tasks is missing"):
        read_dataset(path)


def test_a_layout_that_is_none_is_an_error(installed, tmp_path):
    for number, layout in enumerate(("toy_plug_in:MISSING", "toy_plug_in:TOYS", "no colon")):
        source = DATA.replace("toy_plug_in:LAYOUT", layout).replace('name="toys"', f'name="toys{number}"')
        module = f"toy_plug_in_{number}"
        installed(module, source.replace("toy_plug_in:", f"{module}:"), "cispbench.datasets", dist=module,
                  **{f"toys{number}": "TOYS"})  # fmt: skip
        with pytest.raises(CispbenchError, match=f"the layout of the data set 'toys{number}'"):
            find_source(dataset(f"toys{number}").name, tmp_path, tmp_path)


def test_a_broken_data_set_stands_in_nobodys_way(commands, installed):
    installed("city_plug_in", "raise ImportError('no such thing')", "cispbench.datasets", city="CITY")
    commands.succeed(["show", "mib", "--setting", "overlapped-15-1"])
    commands.succeed(commands.tiny(method="finetune"))
    commands.succeed(["table", "--out", str(commands.out)])
    said = commands.invoke(["doctor", "--out", "out", "--steps-dir", "steps"]).stdout
    assert "data city" in said and "cannot be imported" in said
    listed = commands.succeed(["list", "settings"])
    assert "overlapped-15-1" in listed.stdout and "Warning: the data set 'city'" in listed.stderr
    commands.refused(
        1, ["show", "mib", "--setting", "city:overlapped-15-1"], "Mend the package plug 1, or uninstall it."
    )
