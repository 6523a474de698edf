"""``cispbench list methods`` says what each method needs and where it was published, from the method and the ledger."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest

from cispbench.harness.commands import method_needs
from cispbench.harness.commands.listing import listing
from cispbench.harness.commands.method_needs import method_for, needs_of, published_in
from cispbench.harness.method import Companion, Memory, Method, Range
from cispbench.harness.registry import load_method, method_names
from cispbench.harness.runs.method_code import is_built_in
from cispbench.harness.wrapper import Wrapper
from cispbench.methods.finetune import FineTune
from cispbench.reports.tables.extras import published_extras
from cispbench.results.ledger import find_published_name
from cispbench.results.published_methods import method_facts
from cispbench.splits.plugins import BrokenPluginWarning
from cispbench.splits.settings import Setting

BUILT_IN = [name for name in method_names() if is_built_in(load_method(name))]
NOBODYS = {"finetune", "joint"}  # bounds, which no paper proposes


@dataclass(frozen=True)
class Options:
    """``images``: how many are kept."""

    images: Annotated[int, Range(least=0)] = 100


class Greedy(FineTune):
    """A method that needs everything."""

    name = "greedy"
    Options = Options
    needs: ClassVar[frozenset[str]] = frozenset({"branches"})
    micro_batches = False

    def unsupported(self, setting: Setting, model: str) -> str | None:
        return None if model.startswith("deeplabv3") else "it needs DeepLabV3"

    def companions(self, setting: Setting) -> tuple[Companion, ...]:
        saliency = (Companion("saliency", "saliency_map"),) if setting.dataset == "voc" else ()
        return (*saliency, Companion("proposal", "proposals"))

    def memory(self) -> Memory | None:
        return Memory(self.options.images) if self.options.images else None


def test_the_list_has_a_line_for_each_method() -> None:
    rows = {row["method"]: row for row in json.loads(listing("methods", as_json=True))}
    assert set(rows) == set(method_names()) >= set(BUILT_IN) and len(BUILT_IN) >= 8
    assert rows["mib"]["published"] == "CVPR 2020" and rows["mbs"]["published"] == "ECCV 2024"
    assert rows["ilt"]["published"] == "ICCVW 2019" and rows["joint"]["published"] is None
    for name in ("finetune", "joint", "ilt", "lwf", "lwf_mc", "mib", "plop", "mbs"):
        assert rows[name]["needs"] is None, name


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_method_is_known_to_be_published(name: str) -> None:
    """A new method needs its entry in ``results/published_methods.yaml``, with venue, year and what it uses."""
    published = find_published_name(name)
    assert published is not None, f"the ledger has no numbers of {name}, or under a name that aliases.yaml lacks"
    facts = method_facts()[published]
    assert facts.source
    if name not in NOBODYS:
        assert facts.venue is not None and facts.year is not None and str(facts.year) in facts.venue
        assert published_in(load_method(name)) == facts.venue


@pytest.mark.parametrize("name", [name for name in BUILT_IN if not issubclass(load_method(name), Wrapper)])
def test_what_a_built_in_method_declares_is_what_is_published_of_it(name: str) -> None:
    cls, facts = load_method(name), method_facts()[find_published_name(name) or ""]
    needs = needs_of(cls)
    keeps = any(text.startswith("memory (") for text in needs)
    known = [published_extras(facts, dataset) for dataset in ("voc", "ade")]
    assert {extras.keeps_images for extras in known} == {keeps}
    for dataset, extras in zip(("voc", "ade"), known, strict=True):
        method, setting = method_for(cls, dataset)
        assert extras.more_than_labels == bool(method.companions(setting)), dataset


def test_needs_are_asked_of_the_method() -> None:
    assert needs_of(Greedy) == [
        "memory (100 images)", "saliency maps on voc", "proposal maps", "a deeplabv3 network",
        "a network that offers branches", "whole batches",
    ]  # fmt: skip


def test_a_method_of_another_package_is_not_taken_for_a_published_one() -> None:
    class OtherMib(FineTune):
        name = "mib"

    assert published_in(load_method("mib")) == "CVPR 2020"
    assert published_in(OtherMib) is None


def test_memory_by_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"voc": 100, "ade": 300}

    def of_recipe(cls: type[Method], name: str) -> tuple[Method, Setting]:
        return cls(Options(sizes[name])), method_for(cls, name)[1]

    monkeypatch.setattr(method_needs, "method_for", of_recipe)
    assert needs_of(Greedy)[0] == "memory (100 on voc, 300 on ade images)"
    sizes["ade"] = 0
    assert needs_of(Greedy)[0] == "memory (100 on voc images)"


def test_a_wrapper_needs_another_method() -> None:
    class Fused(Wrapper):
        name = "fused"
        devices = False

    assert needs_of(Fused) == ["another method", "one device"]
    assert needs_of(load_method("ewf")) == ["another method (mib, if no other is named)"]


def test_a_method_that_fails_to_say_it_is_named_and_the_list_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Method) -> Any:
        raise ValueError("no idea")

    monkeypatch.setattr(load_method("mib"), "memory", broken)
    with pytest.warns(BrokenPluginWarning, match="'mib' needs cannot be told: ValueError: no idea"):
        rows = {row["method"]: row for row in json.loads(listing("methods", as_json=True))}
    assert rows["mib"]["needs"] == "?" and rows["plop"]["needs"] is None
