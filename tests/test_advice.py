"""Advice on groups: against the meaning of the words, element by element, and against networks that really cannot."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from itertools import dropwhile, product, takewhile

import numpy as np
import pytest
import torch
from helpers import REPOSITORY

from dpeq import advice as advice_module
from dpeq.advice import GRADES, advise, judge, warnings_for
from dpeq.data.cards import Card, Symmetries, card_names, load_card
from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, group
from dpeq.models.cost import measure
from dpeq.nn.basis import kernel_basis
from dpeq.nn.fields import FieldType, hidden_representation
from dpeq.nn.invariant import InvariantPool, Restrict
from dpeq.nn.separable import SeparableConv
from dpeq.nn.spectral import group_fourier
from dpeq.nn.steerable import SteerableConv

KIDNEYS = ("left kidney", "right kidney", "liver")


def card(dim: int = 2, **known: object) -> Card:
    """A card whose images allow everything, but for what ``known`` says."""
    symmetries = {"laterality_matters": False, "isotropic": True, "orientation_matters": False, "note": "invented"}
    return Card(
        name="organs",
        title="Organs",
        kind="medmnist",
        source="a test",
        licence="CC0 1.0",
        citation="none",
        modality="CT",
        dim=dim,
        classes=KIDNEYS,
        unit="image",
        public_units=10,
        splits={"train": 10},
        symmetries=Symmetries(**{**symmetries, **known}),
        url="http://127.0.0.1:9/organs.npz",
        file="organs.npz",
        md5="0",
        image_size=(8,) * dim,
    )


FLAGS = ("laterality_matters", "isotropic", "orientation_matters", "aligned")
KNOWN = [dict(zip(FLAGS, values, strict=True)) for values in product((True, False), repeat=len(FLAGS))]
CARDS = [card(dim, **known) for dim in (2, 3) for known in KNOWN]
LATERALITY = {"laterality_matters": True, "mirrored_classes": (("left kidney", "right kidney"),)}


def describe(c: Card) -> str:
    return f"{c.dim}D " + " ".join(flag for flag in FLAGS if getattr(c.symmetries, flag))


def test_the_examples_of_the_module_hold():
    results = doctest.testmod(advice_module)
    assert results.attempted >= 3
    assert results.failed == 0


@pytest.mark.parametrize("c", CARDS, ids=describe)
def test_every_group_of_the_dimension_is_judged_by_its_elements(c):
    """The refusals spelled out over matrices: a negative determinant; an element that mixes axes of different scale."""
    advice = {a.group: a for a in advise(c)}
    assert list(advice) == [name for name in GROUP_NAMES if group(name).dim == c.dim]
    for name, a in advice.items():
        whole, known = group(name), c.symmetries
        mirrored = any(np.linalg.det(m) < 0 for m in whole.matrices)
        axis = np.eye(c.dim)[-1]
        mixing = any(not np.isclose(abs(axis @ m @ axis), 1) for m in whole.matrices)
        refused = (mirrored and known.laterality_matters) or (mixing and not known.isotropic)
        turned = any(np.linalg.det(m) > 0 and not np.allclose(m, np.eye(c.dim)) for m in whole.matrices)
        expected = "refused" if refused else "questionable" if turned and known.orientation_matters else "sound"
        assert (a.grade, a.sound) == (expected, expected == "sound"), name
        assert (a.order, a.exact_on_grid) == (whole.order, whole.on_grid)
        assert a.reason.endswith(".")
        assert a.reason.count(". ") == 0, "one sentence"


@pytest.mark.parametrize("c", CARDS, ids=describe)
def test_a_subgroup_is_never_worse_than_its_group_and_no_symmetry_is_always_sound(c):
    grades = {a.group: GRADES.index(a.grade) for a in advise(c)}
    for whole, part in product(grades, repeat=2):
        if group(whole).embedding(group(part)) is not None:
            assert grades[part] <= grades[whole], f"{part} of {whole}"
    assert grades["trivial" if c.dim == 2 else "trivial-3d"] == 0


@pytest.mark.parametrize("c", CARDS, ids=describe)
def test_a_sound_reflection_means_that_laterality_does_not_matter(c):
    for a in advise(c):
        if a.sound and group(a.group).mirrored:
            assert not c.symmetries.laterality_matters
            assert not warnings_for(c, a.group, "none", c.classes)


@pytest.mark.parametrize("c", CARDS, ids=describe)
def test_what_is_advised_instead_is_sound_and_nothing_larger_is(c):
    advice = {a.group: a for a in advise(c)}
    for a in advice.values():
        if a.sound:
            assert a.instead is None
            continue
        assert advice[a.instead].sound
        whole = group(a.group)
        for other in advice.values():
            if other.sound and whole.embedding(group(other.group)) is not None:
                assert len(group(other.group).elements) <= len(group(a.instead).elements)


@pytest.mark.parametrize("c", CARDS, ids=describe)
def test_a_restricted_network_is_judged_by_what_remains(c):
    """Its logits ignore the subgroup alone; sharing filters over axes of different scale stays questionable."""
    for name in [a.group for a in advise(c)]:
        for restriction in group(name).restrictions:
            kept = group(name).subgroup(restriction).name
            verdict, of_kept, whole = judge(c, name, restriction), judge(c, kept), judge(c, name)
            assert (verdict.group, verdict.invariant_under) == (name, kept)
            assert GRADES.index(of_kept.grade) <= GRADES.index(verdict.grade) <= GRADES.index(whole.grade)
            if c.symmetries.isotropic:
                assert verdict.grade == of_kept.grade
            assert bool(warnings_for(c, name, restriction, c.classes)) == (not verdict.sound)


def test_what_the_shipped_cards_are_told():
    grades = {name: {a.group: a.grade for a in advise(load_card(name))} for name in card_names()}
    assert set(grades["pneumoniamnist"].values()) == {"sound"}
    assert {g for g, grade in grades["phantom_hospital"].items() if grade != "sound"} == {"O", "Oh"}
    assert set(grades["adrenalmnist3d"].values()) == {"sound"}
    assert "one pose" in judge(load_card("pneumoniamnist"), "C4").reason
    assert "one pose" not in judge(load_card("pneumoniamnist"), "D1").reason, "mirror images do not turn"


def test_a_warning_names_the_classes_that_a_mirror_swaps():
    (sentence,) = warnings_for(card(**LATERALITY), "D4", "halved", KIDNEYS)
    assert "Group D4 restricted to D2 is unsound for Organs" in sentence
    assert "cannot tell 'left kidney' from 'right kidney'; set model.group or model.restriction to C4." in sentence
    assert "liver" not in sentence
    assert "'left kidney' from 'right kidney'" in judge(card(**LATERALITY), "D1").reason


def test_where_the_card_names_no_pairs_all_classes_of_the_run_are_named():
    (sentence,) = warnings_for(card(laterality_matters=True), "D1", "none", ("left kidney", "other"))
    assert "cannot tell apart those of 'left kidney', 'other' that are mirror images" in sentence
    one_side = warnings_for(card(**LATERALITY), "D1", "none", ("left kidney", "liver"))
    assert "'left kidney', 'liver'" in one_side[0], "the card's pair is not among the run's classes"


def test_several_problems_give_several_warnings_and_one_reason():
    c = card(3, laterality_matters=True, isotropic=False, orientation_matters=True)
    sentences = warnings_for(c, "Oh", "none", KIDNEYS)
    assert [word in s for s, word in zip(sentences, ("mirror", "scan axis", "turned"), strict=True)] == [True] * 3
    assert all(s in judge(c, "Oh").reason.lower() for s in ("mirror", "scan axis", "turned"))
    assert sentences[0].endswith("; set model.group to trivial-3d."), (
        "restricted to it, the filters would still mix scales"
    )


def test_the_wrong_group_or_restriction_is_refused():
    with pytest.raises(ConfigError, match="axial-D4 acts on 3D images but organs is 2D"):
        judge(card(), "axial-D4")
    with pytest.raises(ConfigError, match="Group C4 has no restriction 'reflection'"):
        warnings_for(card(), "C4", "reflection", KIDNEYS)


@pytest.mark.parametrize(("restriction", "sees_sides"), [("none", False), ("halved", False), ("C4", True)])
def test_a_network_that_is_warned_of_really_cannot_see_sides(restriction, sees_sides):
    """An image and its mirror image get one output under D4 and D2, two if the last stage keeps rotations only."""
    torch.manual_seed(0)
    d4 = group("D4")
    first = FieldType(d4, "regular", 2)
    restrict = Restrict(first, d4.subgroup(restriction))
    last = FieldType(restrict.out_type.group, "regular", 3)
    network = torch.nn.Sequential(
        SteerableConv(FieldType(d4, "trivial", 1), first),
        torch.nn.Mish(),
        restrict,
        SteerableConv(restrict.out_type, last),
        torch.nn.Mish(),
        InvariantPool(last),
    )
    left = torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        difference = (network(left) - network(left.flip(-1))).abs().max() / network(left).abs().max()
    assert (difference > 1e-3) == sees_sides
    assert bool(warnings_for(card(**LATERALITY), "D4", restriction, KIDNEYS)) == (not sees_sides)
    assert difference < 1e-5 or sees_sides


def test_advice_needs_no_torch():
    code = (
        "import sys; from dpeq.advice import advise; from dpeq.data.cards import load_card;"
        "advise(load_card('phantom_hospital')); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


DOCS = (REPOSITORY / "docs" / "groups.md").read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table below a line of the page."""
    lines = iter(DOCS[DOCS.index(heading) :].splitlines())
    table = list(takewhile(lambda s: s.startswith("|"), dropwhile(lambda s: not s.startswith("|"), lines)))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_docs_list_every_group_with_its_order_and_exactness():
    rows = {row[0].strip("`"): row[1:] for row in rows_after("## The groups")}
    assert tuple(rows) == GROUP_NAMES
    for name, (dim, order, exact, assumes, holds, fails) in rows.items():
        whole = group(name)
        expected = (str(whole.dim), "infinite" if whole.order is None else str(whole.order), whole.on_grid)
        assert (dim, order, exact == "yes") == expected, name
        assert assumes
        assert holds
        assert fails or len(whole.elements) == 1
        assert ("mirror" in assumes) == whole.mirrored, name


def test_the_docs_tell_what_each_group_costs_and_leaves():
    rows = {row[0].strip("`"): row[1:] for row in rows_after("## What they cost")}
    assert tuple(rows) == GROUP_NAMES
    for name, (field, coefficients, full, separable, leaves) in rows.items():
        whole = group(name)
        kind = hidden_representation(whole)
        size = FieldType(whole, kind, 1).channels
        assert field == f"`{kind}`, {size}"
        assert int(coefficients) == kernel_basis(whole, kind, kind, 3).n
        assert int(full) == size**2
        assert separable == (str(group_fourier(whole).products) if whole.on_grid else "-")
        assert set(re.findall(r"`([^`]+)`", leaves)) == set(whole.restrictions) - {"none"}
        for restriction, kept in re.findall(r"`([a-z]+)` = ([\w-]+)", leaves):
            assert whole.subgroup(restriction).name == kept


def test_the_docs_example_of_one_layer_is_what_is_measured():
    fields = FieldType(group("D4"), "regular", 23)
    layers = [torch.nn.Conv2d(64, 64, 3, padding=1), SteerableConv(fields, fields), SeparableConv(fields, fields)]
    rows = rows_after("One layer of about")
    for layer, channels, (_, *cells) in zip(layers, (64, 184, 184), rows, strict=True):
        cost = measure(layer, (channels, 28, 28))
        assert cells == [f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.noise_norm(1.0):.1f}"]
