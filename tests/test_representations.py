"""Irreps and representations against their definitions, and against escnn's."""

import numpy as np
import pytest

from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, group
from dpeq.nn.spatial import _quiet_escnn
from dpeq.representations import fourier_samples, irreps, representation

FINITE = [n for n in GROUP_NAMES if not group(n).continuous]


def names(whole):
    found = ["trivial", *(f"irrep:{i}" for i in range(len(irreps(whole))))]
    if whole.continuous:
        return [*found[:4], "fourier:1", "fourier:2"]
    quotients = [f"quotient:{r}" for r in whole.restrictions if r in GROUP_NAMES]
    return [*found, "regular", *quotients[:3]]


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_representations_are_orthogonal_homomorphisms(name):
    g = group(name)
    some = list(g.elements)[:: max(1, len(g.elements) // 12)]
    for rep_name in names(g):
        m = representation(g, rep_name).matrices
        assert np.allclose(m @ m.transpose(0, 2, 1), np.eye(m.shape[1])), rep_name
        for a in some:
            for b in some:
                assert np.allclose(m[a] @ m[b], m[g.product(a, b)], atol=1e-12), (rep_name, a, b)


@pytest.mark.parametrize("name", FINITE)
def test_irreps_are_all_there_and_irreducible(name):
    """Real irreps: mean character squared is 1 (2 for complex type); the regular representation holds each d times."""
    g = group(name)
    found = irreps(g)
    characters = np.array([np.trace(i.matrices, axis1=1, axis2=2) for i in found])
    gram = characters @ characters.T / g.order
    assert np.allclose(gram, np.diag([2.0 if i.complex_type else 1.0 for i in found]))
    assert sum(i.dim * i.multiplicity for i in found) == g.order


@pytest.mark.parametrize("name", ["C4", "C8", "D4", "D8", "D1"])
def test_irreps_and_regular_representation_are_escnns(name):
    g = group(name)
    with _quiet_escnn():
        from escnn.group import cyclic_group, dihedral_group

        theirs = dihedral_group(g.rotations) if g.mirrored else cyclic_group(g.rotations)
        for e in g.elements:
            flip, turn = divmod(e, g.rotations)
            element = theirs.element((flip, turn) if g.mirrored else turn)
            regular = representation(g, "regular").matrices[e]
            assert np.allclose(theirs.regular_representation(element), regular)
            for irrep in irreps(g):
                label = irrep.label if g.mirrored else irrep.label[1:]
                assert np.allclose(theirs.irrep(*label)(element), irrep.matrices[e], atol=1e-12)


@pytest.mark.parametrize("name", ["O", "Oh"])
def test_characters_of_the_cube_are_escnns(name):
    """Classes may be numbered otherwise, so the multisets of characters are compared."""
    with _quiet_escnn():
        from escnn.group import full_octa_group, octa_group

        theirs = octa_group() if name == "O" else full_octa_group()
        expected = sorted(tuple(sorted(round(i.character(e)) for e in theirs.elements)) for i in theirs.irreps())
    ours = sorted(
        tuple(sorted(int(c) for c in np.trace(i.matrices, axis1=1, axis2=2).round())) for i in irreps(group(name))
    )
    assert ours == expected


@pytest.mark.parametrize("name", ["SO2", "O2", "axial-SO2"])
@pytest.mark.parametrize("band", [1, 3])
def test_fourier_fields_are_functions_on_the_group(name, band):
    g = group(name)
    rep = representation(g, f"fourier:{band}")
    samples = fourier_samples(g, band, g.rotations)
    assert np.allclose(samples.T @ samples / len(samples), np.eye(rep.size))
    coefficients = np.random.default_rng(0).standard_normal(rep.size)
    values = samples @ coefficients
    for e in g.elements:
        moved = np.array([values[g.product(g.inverse(e), h)] for h in g.elements])  # (g f)(h) = f(g^-1 h)
        assert np.allclose(samples @ rep.matrices[e] @ coefficients, moved)


def test_invariant_vectors_are_what_no_element_changes():
    for name, rep_name, count in [
        ("D4", "regular", 1),
        ("D4", "quotient:D1", 1),
        ("D4", "irrep:0", 1),
        ("D4", "irrep:2", 0),
        ("SO2", "fourier:2", 1),
        ("O2", "fourier:2", 1),
    ]:
        rep = representation(group(name), rep_name)
        assert rep.invariant.shape == (count, rep.size)
        for m in rep.matrices:
            assert np.allclose(rep.invariant @ m.T, rep.invariant)


@pytest.mark.parametrize("name", ["nonsense", "irrep:9", "quotient:C8", "fourier:2", "regular:2", "quotient:"])
def test_unknown_representations_are_refused(name):
    with pytest.raises(ConfigError, match="D4 has no representation"):
        representation(group("D4"), name)


def test_regular_fields_need_a_finite_group_and_bands_have_a_limit():
    with pytest.raises(ConfigError, match="SO2 has no representation 'regular'"):
        representation(group("SO2"), "regular")
    with pytest.raises(ConfigError, match="lower band"):
        representation(group("SO2"), "fourier:8")
    with pytest.raises(ConfigError, match="more than 4"):
        fourier_samples(group("SO2"), 2, 4)
