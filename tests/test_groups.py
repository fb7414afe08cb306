import numpy as np
import pytest
import torch

from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, RESTRICTIONS, group
from dpeq.nn.fields import FieldType, restriction_indices

ON_GRID = [n for n in GROUP_NAMES if group(n).on_grid]
SPATIAL = {2: (5, 5), 3: (5, 5, 5)}


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_group_axioms(name):
    g = group(name)
    n = len(g.elements)
    table = np.array([[g.product(a, b) for b in g.elements] for a in g.elements])
    assert (table[0] == np.arange(n)).all()
    assert all(sorted(row) == list(range(n)) for row in table)
    assert (table[table[:, :, None], np.arange(n)] == table[np.arange(n)[:, None, None], table]).all(), "associativity"
    assert all(g.product(a, g.inverse(a)) == 0 for a in g.elements)
    assert np.allclose(g.matrices @ g.matrices.transpose(0, 2, 1), np.eye(g.dim))


def test_orders_and_who_keeps_the_grid():
    orders = {n: group(n).order for n in GROUP_NAMES}
    assert orders["D4"] == 8
    assert (orders["O"], orders["Oh"], orders["D8"], orders["mirror"]) == (24, 48, 16, 2)
    assert orders["SO2"] is orders["O2"] is orders["axial-SO2"] is None
    assert [n for n in GROUP_NAMES if not group(n).on_grid] == ["C8", "D8", "SO2", "O2", "axial-SO2"]
    assert np.linalg.det(group("O").matrices).round().tolist() == [1.0] * 24
    assert sorted(np.linalg.det(group("Oh").matrices).round().tolist()) == [-1.0] * 24 + [1.0] * 24


@pytest.mark.parametrize("name", ON_GRID)
def test_grid_action_is_a_faithful_group_action(name):
    g = group(name)
    x = torch.randn(1, 1, *SPATIAL[g.dim])
    moved = [g.act_on_grid(x, e) for e in g.elements]
    for a in g.elements:
        for b in list(g.elements)[:8]:
            assert torch.equal(g.act_on_grid(moved[b], a), moved[g.product(a, b)])
    assert len({tuple(m.flatten().tolist()) for m in moved}) == g.order


@pytest.mark.parametrize("name", ON_GRID)
def test_grid_action_moves_a_pixel_where_the_matrix_says(name):
    g = group(name)
    size = 5
    for element in g.elements:
        point = np.array([2, 1, -1][: g.dim])
        target = (g.matrices[element] @ point).astype(int)

        def pixel(p):
            axes = (-p[1], p[0]) if g.dim == 2 else tuple(p)  # images are stored [y down, x]
            return (0, 0, *(int(a) + size // 2 for a in axes))

        x = torch.zeros(1, 1, *[size] * g.dim)
        x[pixel(point)] = 1.0
        assert g.act_on_grid(x, element)[pixel(target)] == 1.0


@pytest.mark.parametrize("name", ["D4", "Oh", "axial-D4"])
def test_interpolation_agrees_with_the_exact_action(name):
    g = group(name)
    x = torch.randn(2, 3, *[6] * g.dim)
    for e in list(g.elements)[:: max(1, g.order // 8)]:
        torch.testing.assert_close(g.act_by_interpolation(x, e), g.act_on_grid(x, e), atol=1e-5, rtol=0)


def test_rotations_off_the_grid_are_not_called_exact():
    with pytest.raises(ValueError, match="does not keep the grid"):
        group("C8").act_on_grid(torch.zeros(1, 1, 4, 4), 1)


def test_interpolated_rotation_by_45_degrees_moves_a_blob():
    ys, xs = torch.meshgrid(torch.linspace(1, -1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    blob = torch.exp(-((xs - 0.5) ** 2 + ys**2) / 0.02)[None, None]
    turned = group("C8").act_by_interpolation(blob, 1)  # counter-clockwise: from the right to the upper right
    expected = torch.exp(-((xs - 0.5 * 2**-0.5) ** 2 + (ys - 0.5 * 2**-0.5) ** 2) / 0.02)
    assert float((turned[0, 0] - expected).abs().max()) < 0.02


def test_axial_action_leaves_the_scan_axis_alone():
    g = group("axial-D4")
    x = torch.arange(6.0).expand(1, 1, 4, 4, 6)
    for e in g.elements:
        assert torch.equal(g.act_on_grid(x, e), x)


@pytest.mark.parametrize("name", ON_GRID)
def test_restricted_fields_are_regular_fields_of_the_subgroup(name):
    g = group(name)
    for restriction in g.restrictions:
        h = g.subgroup(restriction)
        embedded = g.embedding(h)
        order = torch.tensor(restriction_indices(g, h))
        assert sorted(order.tolist()) == list(range(g.order))
        x = torch.randn(1, g.order, *SPATIAL[g.dim])
        whole, parts = FieldType(g, "regular", 1), FieldType(h, "regular", g.order // h.order)
        for small, large in enumerate(embedded):
            before = whole.transform(x, large).index_select(1, order)
            assert torch.equal(before, parts.transform(x.index_select(1, order), small))


@pytest.mark.parametrize(
    ("name", "restriction", "left"),
    [
        ("D4", "halved", "D2"),
        ("D2", "halved", "D1"),
        ("C2", "halved", "trivial"),
        ("Oh", "halved", "O"),
        ("Oh", "reflection", "mirror"),
        ("axial-D4", "reflection", "mirror"),
        ("O2", "reflection", "D1"),
        ("D8", "invariant", "trivial"),
        ("SO2", "C4", "C4"),
        ("Oh", "axial-D4", "axial-D4"),
    ],
)
def test_restrictions_by_name(name, restriction, left):
    assert group(name).subgroup(restriction).name == left


@pytest.mark.parametrize(
    ("name", "restriction"), [("C4", "reflection"), ("O", "halved"), ("C4", "D4"), ("SO2", "halved"), ("D4", "O")]
)
def test_impossible_restrictions_list_the_possible_ones(name, restriction):
    with pytest.raises(ConfigError, match=rf"has no restriction '{restriction}'; use one of: none, "):
        group(name).subgroup(restriction)
    assert set(group(name).restrictions) & set(RESTRICTIONS)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="D4"):
        group("D5")
