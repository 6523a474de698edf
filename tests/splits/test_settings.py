"""Names, steps and label tables of settings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.splits.datasets import datasets
from cispbench.splits.errors import SettingError
from cispbench.splits.settings import Setting, Step, list_settings, paper_table, parse_setting


@pytest.mark.parametrize(
    ("name", "dataset", "sizes"),
    [
        ("overlapped-19-1", "voc", [19, 1]),
        ("disjoint-15-1", "voc", [15, 1, 1, 1, 1, 1]),
        ("overlapped-5-3", "voc", [5, 3, 3, 3, 3, 3]),
        ("overlapped-100-10", "ade", [100, 10, 10, 10, 10, 10]),
        ("partitioned-50-50", "ade", [50, 50, 50]),
        ("overlapped-4-4", "voc", [4, 4, 4, 4, 4]),
        ("ade:overlapped-10-10", "ade", [10] * 15),
    ],
)
def test_steps_have_the_sizes_of_the_task(name: str, dataset: str, sizes: list[int]) -> None:
    setting = parse_setting(name)
    assert (setting.name, setting.dataset) == (name, dataset)
    assert [len(step.classes) for step in setting.steps] == sizes
    assert setting.learning_order == tuple(range(sum(sizes) + 1))


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("voc:overlapped-15-1", "overlapped-15-1"),
        ("overlapped-voc:15-1", "overlapped-15-1"),
        ("overlapped-15-1-a", "overlapped-15-1"),
        ("voc:overlapped-15-1-b", "overlapped-15-1-b"),
        ("voc:overlapped-4-4", "overlapped-4-4"),
        ("overlapped-ade:10-10", "ade:overlapped-10-10"),
        ("disjoint-voc:18-2", "voc:disjoint-18-2"),
        ("partitioned-15-1-s0", "partitioned-15-1"),
        ("partitioned-15-1-a-s01", "partitioned-15-1-s1"),
        ("voc:partitioned-15-1-b-s1", "partitioned-15-1-b-s1"),
        ("partitioned-15-1-s", "partitioned-15-1-s"),
        ("ade:partitioned-100-50-s0", "partitioned-100-50-s0"),
        ("voc:partitioned-18-2-s3", "voc:partitioned-18-2-s3"),
    ],
)
def test_names_become_canonical(written: str, canonical: str) -> None:
    assert parse_setting(written).name == canonical
    assert parse_setting(canonical) == parse_setting(written)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("overlaped-15-1", ["overlaped", "'overlapped-15-1'"]),
        ("overlapped_15_1", ["no setting", "'overlapped-15-1'"]),
        ("15-1", ["overlapped-15-1", "disjoint-15-1"]),
        ("", ["no setting", "cispbench list settings"]),
        ("overlapped-18-2", ["voc and ade", "voc:overlapped-18-2", "ade:overlapped-18-2"]),
        ("overlapped-16-3", ["voc has 20", "ade has 150", "divide by 3"]),
        ("overlapped-150-1", ["voc has 20", "ade has 150 classes, so step 0"]),
        ("voc:overlapped-100-10", ["voc has 20", "15-1"]),
        ("city:overlapped-15-1", ["city", "ade, voc"]),
        ("overlapped-15-1-z", ["'z'", "a, b, c", "w"]),
        ("overlapped-100-5-b", ["'b'", "ade 100-5: a."]),
        ("overlapped-0-5", ["at least 1"]),
        ("overlapped-15-0", ["at least 1"]),
        ("overlapped-015-1", ["leading zero"]),
        ("partitioned-100-5", ["does not exist", "ADE20K are 100-50, 100-10, 50-50", "partitioned-100-5-s0"]),
        ("overlapped-15-1-s1", ["only partitioned", "-s1"]),
        ("partitioned-15-1-s4294967296", ["4294967296", "0 to 4294967295"]),
        ("partitioned-15-1-s1-b", ["no setting"]),
        ("overlapped-15-1-b-c", ["no setting"]),
        ("voc:overlapped-ade:15-1", ["no setting"]),
    ],
)
def test_errors_say_what_and_what_to_write(name: str, words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        parse_setting(name)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_listed_settings_and_the_paper_table() -> None:
    settings = list_settings()
    names = [setting.name for setting in settings]
    assert len(set(names)) == len(names) == 11 * 2 + 6 * 2 + 6 + 3
    assert all(setting.order == "a" and ":" not in setting.name for setting in settings)
    assert [setting for setting in settings if setting.scenario == "partitioned"] == [
        parse_setting(f"partitioned-{task}")
        for task in ("19-1", "15-5", "15-1", "10-1", "10-5", "5-3", "100-50", "100-10", "50-50")
    ]
    assert len(paper_table()) == 12
    assert set(paper_table()) <= set(settings)


def test_every_published_order_makes_a_setting_with_the_tasks_sizes() -> None:
    names = []
    for dataset, home in datasets().items():
        for task, orders in home.orders.items():
            natural = parse_setting(f"{dataset}:overlapped-{task}")
            for order in orders:
                setting = parse_setting(f"{natural.name}-{order}")
                assert [len(step.classes) for step in setting.steps] == [len(step.classes) for step in natural.steps]
                assert setting.learning_order != natural.learning_order
                names.append(setting.name)
    assert len(names) == 22 + 1 + 6


def test_classes_of_a_shuffled_order() -> None:
    setting = parse_setting("overlapped-15-1-b")
    assert setting.steps[1] == Step(1, (17,))
    assert setting.learning_order[:4] == (0, 12, 9, 20)
    assert setting.learning_order[15:] == (11, 17, 3, 6, 18, 10)
    assert setting.classes_seen(2)[-2:] == (17, 3)
    assert [setting.num_classes(step) for step in range(6)] == [16, 17, 18, 19, 20, 21]
    assert [setting.old_classes(step) for step in range(6)] == [0, 16, 17, 18, 19, 20]
    assert [setting.new_classes(step) for step in range(6)] == [16, 1, 1, 1, 1, 1]
    assert setting.label_table(2)[3] == 17
    assert sum(setting.label_table(2)[:21]) == 17
    assert setting.test_table()[10] == 20


@pytest.mark.parametrize("step", [-1, 6, 100])
def test_a_step_that_does_not_exist_is_an_error(step: int) -> None:
    setting = parse_setting("overlapped-15-1")
    for ask in (setting.classes_seen, setting.num_classes, setting.old_classes, setting.new_classes):
        with pytest.raises(SettingError, match="0 to 5"):
            ask(step)
    with pytest.raises(SettingError, match=f"no step {step}"):
        setting.label_table(step)


any_setting = st.sampled_from([*list_settings(), parse_setting("overlapped-15-1-w"), parse_setting("disjoint-50-50-c")])


@given(any_setting, st.data())
def test_label_tables_follow_the_rules(setting: Setting, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, setting.last_step))
    table, test = setting.label_table(step), setting.test_table()
    assert len(table) == len(test) == 256
    assert table[255] == test[255] == 255
    for value in range(255):
        if value > setting.num_foreground:
            assert table[value] == test[value] == -1
        elif value in setting.steps[step].classes:
            assert table[value] == test[value] == setting.learning_order.index(value)
            assert setting.old_classes(step) <= table[value] < setting.num_classes(step)
        else:
            assert table[value] == 0
            assert setting.learning_order[test[value]] == value


@given(any_setting)
def test_joint_learns_everything_at_once(setting: Setting) -> None:
    joint = setting.joint()
    assert joint.name == setting.name
    assert joint.last_step == 0
    assert joint.learning_order == setting.learning_order
    assert joint.label_table(0) == joint.test_table() == setting.test_table()


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["voc", "ade"]))
def test_a_task_is_accepted_exactly_when_it_fits(first: int, rest: int, prefix: str) -> None:
    count = datasets()[prefix].classes
    fits = first < count and (count - first) % rest == 0
    name = f"{prefix}:overlapped-{first}-{rest}"
    if fits:
        sizes = [len(step.classes) for step in parse_setting(name).steps]
        assert sizes == [first] + [rest] * ((count - first) // rest)
    else:
        with pytest.raises(SettingError):
            parse_setting(name)


def test_steps_must_hold_every_class_once() -> None:
    with pytest.raises(SettingError, match="exactly once"):
        Setting("odd", "voc", "overlapped", "2-1", "a", (Step(0, (1, 2)), Step(1, (2,))))
    with pytest.raises(SettingError, match="numbered"):
        Setting("odd", "voc", "overlapped", "2-1", "a", (Step(0, (1, 2)), Step(2, (3,))))


def test_importing_settings_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, cispbench.splits.selection; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
