import pytest
import torch

from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, RESTRICTIONS, group
from dpeq.nn.basis import _gspace, _quiet_escnn
from dpeq.nn.fields import FieldType, restriction_indices


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_group_axioms(name):
    g = group(name)
    elements = g.elements
    assert len(set(elements)) == g.order
    for a in elements:
        assert g.product((0, 0), a) == a
        assert {g.product(a, b) for b in elements} == set(elements)
        for b in elements:
            for c in elements:
                assert g.product(g.product(a, b), c) == g.product(a, g.product(b, c))


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_grid_action_is_a_group_action(name):
    g = group(name)
    x = torch.randn(1, 1, *[5, 5, 4][: g.dim])
    for a in g.elements:
        for b in g.elements:
            twice = g.act_on_grid(g.act_on_grid(x, b), a)
            assert torch.equal(twice, g.act_on_grid(x, g.product(a, b)))
    images = {tuple(g.act_on_grid(x, e).flatten().tolist()) for e in g.elements}
    assert len(images) == g.order, "the action must be faithful"


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_regular_representation_is_escnns(name):
    """The channel order is escnn's, so fields mean the same in both libraries."""
    g = group(name)
    with _quiet_escnn():
        gspace = _gspace(g)
        fibre = gspace.fibergroup
        theirs = {}
        for element in fibre.elements:
            matrix = torch.tensor(gspace.regular_repr(element))
            theirs[tuple(matrix.argmax(dim=1).tolist())] = element
        assert len(theirs) == g.order
    ours = {g.regular_permutation(e) for e in g.elements}
    assert ours == set(theirs)


def test_axial_action_leaves_the_scan_axis_alone():
    g = group("axial-D4")
    x = torch.arange(6.0).expand(1, 1, 4, 4, 6)
    for e in g.elements:
        assert torch.equal(g.act_on_grid(x, e), x)


@pytest.mark.parametrize("name", GROUP_NAMES)
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_restricted_fields_are_regular_fields_of_the_subgroup(name, restriction):
    g = group(name)
    if (restriction == "halved" and g.rotations == 1) or (restriction == "reflection" and not g.mirrored):
        with pytest.raises(ConfigError, match=restriction):
            g.subgroup(restriction)
        return
    h = g.subgroup(restriction)
    order = torch.tensor(restriction_indices(g, h))
    assert sorted(order.tolist()) == list(range(g.order))
    x = torch.randn(1, g.order, *[4, 4, 3][: g.dim])
    whole = FieldType(g, "regular", 1)
    parts = FieldType(h, "regular", g.order // h.order)
    step = g.rotations // h.rotations
    for f, r in h.elements:
        before = whole.transform(x, (f, r * step)).index_select(1, order)
        after = parts.transform(x.index_select(1, order), (f, r))
        assert torch.equal(before, after)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="D4"):
        group("D5")
    with pytest.raises(ConfigError, match="halved"):
        group("D4").subgroup("quartered")
