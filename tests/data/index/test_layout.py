from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpeq.data.index.layout import Layout
from dpeq.data.readers.source import Refused
from dpeq.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "path", "values"),
    [
        ("{patient}/*/*.nii.gz", "p1/s/a.nii.gz", {"patient": "p1"}),
        ("{patient}/*/*.nii.gz", "p1/a.nii.gz", None),
        ("{patient}/*/*.nii.gz", "p1/s/t/a.nii.gz", None),
        ("{patient}/**/*.nii.gz", "p1/a.nii.gz", {"patient": "p1"}),
        ("{patient}/**/*.nii.gz", "p1/s/t/a.nii.gz", {"patient": "p1"}),
        ("{patient}/**", "p1/s/t", {"patient": "p1"}),
        ("{patient}/**", "p1", None),
        ("**/{patient}/x", "a/b/p1/x", {"patient": "p1"}),
        ("images/{patient}.nii.gz", "images/.nii.gz", None),
        ("images/{patient}.nii.gz", "images/pXnii.gz", None),
        ("{label}/{patient}_*.png", "a/p_.png", {"label": "a", "patient": "p"}),
        ("{patient}/{patient}_1.nii", "p/p_1.nii", {"patient": "p"}),
        ("{patient}/{patient}_1.nii", "p/q_1.nii", None),
        ("{patient}/{study}/{series}/{image}", "a/b/c/d", {"patient": "a", "study": "b", "series": "c", "image": "d"}),
        ("/{patient}/x/", "p\udcff\n/x", {"patient": "p\udcff\n"}),
        ("{patient}.[a]", "p.[a]", {"patient": "p"}),
        ("{patient}-{image}.png", "p-1.png", {"patient": "p", "image": "1"}),
    ],
)
def test_a_path_fits_or_does_not(pattern, path, values):
    assert Layout(pattern).match(path) == values


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("{patient}_*.png", "p_1_a.png"),
        ("*_{patient}.png", "p_1_a.png"),
        ("*_{patient}_*", "x_A_x_B_x_A_x"),  # as short and as long as possible agree; what lies between does not
        ("**/{patient}/**", "a/b/c"),
        ("{patient}{image}.png", "p12.png"),
    ],
)
def test_a_path_that_fits_in_several_ways_is_refused(pattern, path):
    with pytest.raises(Refused, match="more than one way"):
        Layout(pattern).match(path)


def test_ways_that_say_the_same_are_one():
    assert Layout("{patient}/**/**/*_*").match("p/a/b/c_d_e") == {"patient": "p"}


_PIECES = ["{patient}", "{image}", "*", "_", "a", "/"]


@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=5), st.text("a_b/", min_size=1, max_size=6))
def test_every_way_to_fit_is_known(pieces, path):
    """Against trying all ways to cut the path."""
    pattern = "".join(pieces)
    assume("**" not in pattern and "//" not in pattern and not pattern.startswith("/") and not pattern.endswith("/"))
    ways = set()
    for cuts in itertools.combinations_with_replacement(range(len(path) + 1), len(pieces) - 1):
        parts = [path[i:j] for i, j in itertools.pairwise((0, *cuts, len(path)))]
        values: dict[str, str] = {}
        for piece, part in zip(pieces, parts, strict=True):
            # A star that is a whole name, too, stands for at least one character.
            wild = "/" not in part and (bool(part) or piece == "*")
            same = values.setdefault(piece, part) == part or piece == "*"
            if not same or not (part == piece if piece in "_a/" else wild):
                break
        else:
            if all(path.split("/")):
                ways.add(tuple(sorted((k[1:-1], v) for k, v in values.items() if k[0] == "{")))
    layout = Layout(pattern)
    if len(ways) > 1:
        with pytest.raises(Refused):
            layout.match(path)
    elif all(path.split("/")):
        found = layout.match(path)
        assert (set() if found is None else {tuple(sorted(found.items()))}) == ways


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{name}/x", r"placeholder \{name\}; use \{patient\}, \{study\}"),
        ("{patient/x", "a brace without its partner"),
        ("{patient}/a**/x", "beside other text"),
        ("a//b", "an empty name"),
        ("", "an empty name"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern, reason):
    with pytest.raises(ConfigError, match=reason):
        Layout(pattern)
