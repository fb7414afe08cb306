from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from dpeq.data.augment import AugmentConfig
from dpeq.data.views import Augment, Draws, Moves, normal_noise, splitmix64
from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.privacy.randomness import Randomness, Stream

PIXELS = AugmentConfig(shift=3, flip=("x", "y"))
EVERYTHING = {
    2: AugmentConfig(
        shift=3, rotate=25, scale=0.2, flip=("x", "y"), quarter_turns=True, brightness=0.2, contrast=0.3, noise=0.1
    ),
    3: AugmentConfig(
        shift=2, rotate=25, tilt=15, scale=0.2, flip=("x", "z"), brightness=0.2, contrast=0.3, noise=0.1
    ),
}  # fmt: skip
SETTINGS = [
    (EVERYTHING[2], (12, 12)),
    (EVERYTHING[3], (9, 7, 6)),
    (EVERYTHING[3].model_copy(update={"tilt": 0.0}), (9, 7, 6)),
    (PIXELS, (11, 8)),
    (AugmentConfig(shift=2, flip=("x", "z"), quarter_turns=True), (8, 8, 5)),
    (AugmentConfig(brightness=0.3), (6, 7)),
    (AugmentConfig(contrast=0.3, noise=0.1), (6, 7)),
]


def keys(step: int = 1) -> Stream:
    return Randomness.create(0).stream("views", step)


def images(rows: int, *shape: int) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(5))


def fixed(augment: Augment, rows: int = 1, **changes: object) -> Moves:
    """Moves that change nothing, but for ``changes``."""
    still = Augment(AugmentConfig(), augment.dim)
    return replace(still.moves(still.draw(keys(), rows)), **changes)


def view(augment: Augment, x: torch.Tensor, moves: Moves, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(augment, "moves", lambda draws: moves)
    return augment(x, augment.draw(keys(), len(x)))


def rotation(degrees: float, a: int, b: int, dim: int) -> np.ndarray:
    matrix, angle = np.eye(dim), np.deg2rad(degrees)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[b, a], matrix[a, b] = np.sin(angle), -np.sin(angle)
    return matrix


def by_scipy(x: torch.Tensor, moves: Moves, spacing: tuple[float, ...]) -> np.ndarray:
    """Each row by scipy's linear interpolation; the map is composed forwards, in millimetres, and inverted."""
    shown = np.empty(x.shape)
    dim = x.dim() - 2
    to_mm = np.diag(spacing)
    centre = (np.array(x.shape[2:]) - 1) / 2
    for row in range(len(x)):
        forwards = np.diag([-1.0 if f else 1.0 for f in moves.flip[row]])
        forwards = rotation(90 * int(moves.quarters[row]), 0, 1, dim) @ forwards
        if dim == 3:
            forwards = rotation(float(moves.angles[row, 2]), 2, 0, dim) @ forwards
            forwards = rotation(float(moves.angles[row, 1]), 1, 2, dim) @ forwards
        forwards = float(moves.scale[row]) * rotation(float(moves.angles[row, 0]), 0, 1, dim) @ forwards
        matrix = np.linalg.inv(np.linalg.inv(to_mm) @ forwards @ to_mm)
        offset = centre - matrix @ (centre + moves.shift[row].numpy())
        for channel in range(x.shape[1]):
            shown[row, channel] = ndimage.affine_transform(
                x[row, channel].double().numpy(), matrix, offset, order=1, mode="mirror"
            )
    return shown


@pytest.mark.parametrize(
    ("config", "spatial", "spacing"),
    [
        (AugmentConfig(rotate=180), (13, 18), (1.0, 1.0)),
        (AugmentConfig(rotate=40, scale=0.3, shift=4, flip=("x",)), (15, 12), (2.0, 0.7)),
        (AugmentConfig(rotate=10, quarter_turns=True, flip=("y",), shift=2), (14, 14), (1.0, 1.0)),
        (AugmentConfig(scale=0.5, shift=5), (9, 1), (1.0, 10.0)),
        (AugmentConfig(rotate=60, scale=0.2, shift=4, flip=("x", "y", "z")), (9, 11, 7), (1.0, 1.5, 3.0)),
        (AugmentConfig(rotate=60, tilt=30, scale=0.2, shift=2, flip=("z",)), (9, 11, 7), (1.0, 1.5, 3.0)),
        (AugmentConfig(rotate=180, tilt=180, quarter_turns=True), (8, 8, 9), (1.0, 1.0, 1.0)),
        (AugmentConfig(tilt=20, shift=1), (6, 5, 1), (1.0, 1.0, 5.0)),
        (AugmentConfig(scale=0.5), (6, 5, 1), (1.0, 1.0, 5.0)),
    ],
)
def test_scipy_moves_images_to_the_same_place(config, spatial, spacing):
    """Up to the reflected edges; single precision knows a place to a few millionths of a pixel."""
    augment = Augment(config, len(spatial), spacing)
    draws = augment.draw(keys(), 6)
    x = images(6, 2, *spatial).double()
    expected = by_scipy(x, augment.moves(draws), spacing)
    np.testing.assert_allclose(augment(x, draws).numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(augment(x.float(), draws).numpy(), expected, atol=2e-4)


def test_a_turned_body_keeps_its_shape_in_millimetres(monkeypatch):
    """A Gaussian ball of 4 mm, 6 mm from the centre, stays a ball and stays 6 mm away, although pixels are oblong."""
    spacing = (2.0, 1.0)
    y, x = (np.arange(n) - (n - 1) / 2 for n in (25, 51))

    inside = torch.from_numpy((y[:, None] * spacing[0]) ** 2 + (x * spacing[1]) ** 2 < 22**2)

    def ball(angle: float) -> torch.Tensor:
        """Seen with y up; rows run down."""
        up, right = 6 * np.sin(angle), 6 * np.cos(angle)
        distance = (-y[:, None] * spacing[0] - up) ** 2 + (x * spacing[1] - right) ** 2
        return torch.from_numpy(np.exp(-distance / (2 * 4.0**2)))[None, None]

    augment = Augment(AugmentConfig(rotate=90), 2, spacing)
    for degrees in (90.0, 45.0, -30.0):
        turned = view(
            augment, ball(0.3), fixed(augment, angles=torch.tensor([[degrees]], dtype=torch.float64)), monkeypatch
        )
        # Interpolating over 2 and 1 mm misses up to (2 * 2 + 1 * 1) / 8 of a second derivative of at most 1 / 16.
        assert (turned - ball(0.3 + math.radians(degrees)))[..., inside].abs().max() < 0.04
    assert (ball(0.3) - ball(0.3 + math.radians(30))).abs().max() > 0.2


@given(
    edges=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    channels=st.integers(1, 3),
    shift=st.integers(0, 9),
    flips=st.sets(st.sampled_from("xyz")),
)
def test_whole_pixels_move_exactly(edges, channels, shift, flips):
    """Padding by reflection and cropping at a random place, after mirrors by axis: bit for bit."""
    dim = len(edges)
    axes = "yx" if dim == 2 else "xyz"
    config = AugmentConfig(shift=min([shift, *(e - 1 for e in edges)]), flip=sorted(flips & set(axes)))
    augment = Augment(config, dim)
    x, draws = images(5, channels, *edges), augment.draw(keys(), 5)
    moves, shown = augment.moves(draws), augment(x, draws)
    for row in range(5):
        flipped = x[row].flip([1 + axis for axis in range(dim) if moves.flip[row, axis]])
        padded = F.pad(flipped, [config.shift] * 2 * dim, mode="reflect")
        window = [slice(config.shift - s, config.shift - s + e) for s, e in zip(moves.shift[row], edges, strict=True)]
        assert torch.equal(shown[row], padded[(slice(None), *window)])


@pytest.mark.parametrize(("name", "spatial"), [("C4", (7, 7)), ("axial-C4", (6, 6, 5))])
def test_quarter_turns_are_those_of_the_group(name, spatial):
    g = group(name)
    x = images(20, 2, *spatial)
    augment = Augment(AugmentConfig(quarter_turns=True), g.dim)
    draws = augment.draw(keys(), 20)
    quarters = augment.moves(draws).quarters
    assert quarters.unique().tolist() == [0, 1, 2, 3]
    for row, shown in enumerate(augment(x, draws)):
        assert torch.equal(shown, g.act_on_grid(x[row], int(quarters[row])))


def test_axes_are_named_as_they_are_seen():
    x, volume = images(30, 1, 5, 6), images(30, 1, 5, 6, 4)
    for axis, array_axis in (("x", 3), ("y", 2)):
        augment = Augment(AugmentConfig(flip=(axis,)), 2)
        shown = augment(x, augment.draw(keys(), 30))
        mirrored = [torch.equal(a, b.flip(array_axis - 1)) for a, b in zip(shown, x, strict=True)]
        same = [torch.equal(a, b) for a, b in zip(shown, x, strict=True)]
        assert any(mirrored)
        assert any(same)
        assert all(a != b for a, b in zip(mirrored, same, strict=True))
    for axis, array_axis in (("x", 1), ("y", 2), ("z", 3)):
        augment = Augment(AugmentConfig(flip=(axis,)), 3)
        draws = augment.draw(keys(), 30)
        flipped = augment.moves(draws).flip
        assert flipped.any(0).tolist() == [a == array_axis for a in (1, 2, 3)]
        row = int(flipped.any(1).nonzero()[0])
        assert torch.equal(augment(volume, draws)[row], volume[row].flip(array_axis))


def test_nothing_asked_is_nothing_done():
    for dim, spatial in ((2, (5, 4)), (3, (5, 4, 3))):
        x = images(3, 2, *spatial).to(torch.bfloat16)
        augment = Augment(AugmentConfig(), dim)
        assert augment(x, augment.draw(keys(), 3)) is x
    for config, spatial in SETTINGS:
        augment = Augment(config, len(spatial))
        assert augment(torch.empty(0, 2, *spatial), augment.draw(keys(), 0)).shape == (0, 2, *spatial)


@pytest.mark.parametrize("dim", [2, 3])
def test_draws_stay_in_their_ranges(dim):
    """Random ones and the ends of the unit interval, which floating point may round to."""
    config = EVERYTHING[dim].model_copy(update={"quarter_turns": True})
    augment = Augment(config, dim)
    draws = augment.draw(keys(), 2000)
    ends = torch.stack([torch.full_like(draws.values[0], u) for u in (0.0, 2.0**-54, 0.5, 1 - 2.0**-53, 1.0)])
    moves = augment.moves(Draws(torch.cat([draws.values, ends])))
    assert moves.shift.abs().max() == config.shift
    assert moves.angles[:, 0].abs().max() <= config.rotate
    assert dim == 2 or moves.angles[:, 1:].abs().max() <= config.tilt
    assert 1 - config.scale <= moves.scale.min() < moves.scale.max() <= 1 + config.scale
    assert 1 - config.contrast <= moves.contrast.min() < moves.contrast.max() <= 1 + config.contrast
    assert moves.brightness.abs().max() <= config.brightness
    assert moves.quarters.unique().tolist() == [0, 1, 2, 3]
    assert moves.seeds.aminmax() == (0, 2**53 - 1)


@pytest.mark.parametrize("dim", [2, 3])
def test_draws_are_uniform_and_independent(dim):
    rows = 20_000
    config = EVERYTHING[dim].model_copy(update={"flip": "xyz"[:dim], "quarter_turns": True, "tilt": 30.0 * (dim == 3)})
    moves = Augment(config, dim).moves(Augment(config, dim).draw(keys(), rows))
    for counted in [*moves.shift.T, moves.quarters, *moves.flip.T.long()]:
        assert stats.chisquare(torch.bincount(counted - counted.min()).numpy()).pvalue > 1e-4
    for values, low, high in [
        *((angle, -bound, bound) for angle, bound in zip(moves.angles.T, (25, 30, 30), strict=False)),
        (moves.scale, 0.8, 1.2),
        (moves.contrast, 0.7, 1.3),
        (moves.brightness, -0.2, 0.2),
        (moves.seeds.double(), 0, 2.0**53),
    ]:
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-4
    columns = [*moves.shift.T, moves.quarters, *moves.flip.T, *moves.angles.T, moves.scale, moves.contrast]
    table = torch.stack([c.double() for c in [*columns, moves.brightness, moves.seeds]])
    among = torch.corrcoef(table) - torch.eye(len(table))
    assert among.abs().max() < 5 / math.sqrt(rows), "two moves of one row"
    following = torch.corrcoef(torch.cat([table[:, 1:], table[:, :-1]]))[: len(table), len(table) :]
    assert following.abs().max() < 5 / math.sqrt(rows), "the moves of neighbouring rows"


def test_draws_do_not_depend_on_what_is_asked():
    few, many = Augment(PIXELS, 2), Augment(EVERYTHING[2], 2)
    assert torch.equal(few.draw(keys(), 9).values, many.draw(keys(), 9).values)
    assert torch.equal(few.moves(few.draw(keys(), 9)).shift, many.moves(many.draw(keys(), 9)).shift)


@pytest.mark.parametrize("setting", range(len(SETTINGS)))
@given(data=st.data())
def test_views_do_not_depend_on_how_rows_are_split(setting, data):
    config, spatial = SETTINGS[setting]
    rows = 13
    augment = Augment(config, len(spatial))
    x, draws = images(rows, 2, *spatial), augment.draw(keys(), rows)
    whole = augment(x, draws)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1))))
    for part in torch.tensor_split(order, cuts):
        assert torch.equal(augment(x[part], draws[part]), whole[part])
    for start, end in zip([0, *cuts], [*cuts, rows], strict=True):
        assert torch.equal(augment(x[start:end], draws[start:end]), whole[start:end])


@pytest.mark.parametrize(("config", "spatial"), SETTINGS)
def test_no_row_changes_another(config, spatial):
    """A statistic of the batch would let one patient change another's gradient."""
    augment = Augment(config, len(spatial))
    x, draws = images(6, 2, *spatial), augment.draw(keys(), 6)
    whole = augment(x, draws)
    for strange in (1e30, math.nan, math.inf):
        other = x.clone()
        other[2] = strange
        shown = augment(other, draws)
        assert torch.equal(shown[[0, 1, 3, 4, 5]], whole[[0, 1, 3, 4, 5]])
        assert not torch.equal(shown[2], whole[2])


def test_one_image_has_many_views_and_a_seed_makes_them_again():
    augment = Augment(EVERYTHING[2], 2)
    x = images(1, 1, 12, 12).expand(64, -1, -1, -1)
    shown = augment(x, augment.draw(keys(), 64))
    assert len(shown.flatten(1).unique(dim=0)) == 64
    assert torch.equal(shown, augment(x, augment.draw(keys(), 64)))
    assert not torch.equal(shown, augment(x, augment.draw(keys(step=2), 64)))


@pytest.mark.parametrize(("config", "spatial"), SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision_is_kept(config, spatial, dtype):
    """Half precision is rounded once, at the end."""
    augment = Augment(config, len(spatial))
    x, draws = images(4, 2, *spatial).to(dtype), augment.draw(keys(), 4)
    kept = x.clone()
    shown = augment(x, draws)
    assert shown.dtype == dtype
    assert shown.shape == x.shape
    assert shown.is_contiguous()
    assert torch.equal(x, kept), "the images are not written to"
    single = augment(x.float(), draws)
    if dtype == torch.float64:
        assert (shown - single).abs().max() <= (1e-4 if config.interpolates else 1e-6)
    else:
        assert torch.equal(shown, single.to(dtype))


@pytest.mark.parametrize(("config", "spatial"), SETTINGS)
def test_autocast_does_not_blur(config, spatial):
    augment = Augment(config, len(spatial))
    x, draws = images(4, 1, *spatial), augment.draw(keys(), 4)
    whole = augment(x, draws)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x, draws), whole)


def test_brightness_and_contrast_are_of_each_channel_of_each_image():
    config = AugmentConfig(brightness=0.5, contrast=0.6)
    augment = Augment(config, 2)
    x, draws = images(8, 3, 6, 5) + torch.arange(3.0)[:, None, None], augment.draw(keys(), 8)
    moves, shown = augment.moves(draws), augment(x, draws)
    for row in range(8):
        for channel in range(3):
            mean = x[row, channel].mean()
            expected = mean + moves.contrast[row] * (x[row, channel] - mean) + moves.brightness[row]
            assert torch.allclose(shown[row, channel], expected.float(), atol=1e-6)


def test_noise_comes_after_everything_else_with_the_strength_asked():
    still, noisy = AugmentConfig(rotate=20, contrast=0.2), AugmentConfig(rotate=20, contrast=0.2, noise=0.3)
    x, draws = images(50, 2, 20, 20), Augment(still, 2).draw(keys(), 50)
    added = Augment(noisy, 2)(x, draws) - Augment(still, 2)(x, draws)
    seeds = Augment(noisy, 2).moves(draws).seeds
    assert torch.allclose(added.flatten(1), 0.3 * normal_noise(seeds, 800), atol=1e-5)
    assert float(added.std()) == pytest.approx(0.3, rel=0.02)


def test_splitmix_gives_the_published_numbers():
    """The first outputs for seed 1234567, as Rosetta Code lists them for Steele, Lea & Flood's generator."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seeds = torch.tensor([0, 1234567])
    assert [value % 2**64 for value in splitmix64(seeds, 4)[1].tolist()] == published


def test_noise_is_normal_and_independent():
    rows, count = 400, 1001  # odd: one number of the last pair is left over
    noise = normal_noise(torch.arange(rows), count)  # neighbouring seeds, the worst case
    assert noise.shape == (rows, count)
    assert stats.kstest(noise.flatten().numpy()[::7], "norm").pvalue > 1e-4
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / n)
    assert float(noise.abs().max()) > 4
    for other in (noise.roll(1, 0), noise.roll(1, 1), noise.roll((count + 1) // 2, 1), noise.roll((1, 1), (0, 1))):
        for a, b in ((noise, other), (noise**2, other**2)):
            assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 5 / math.sqrt(n)
    assert torch.equal(normal_noise(torch.tensor([7]), 10), noise[7:8, [0, 1, 2, 3, 4, 501, 502, 503, 504, 505]])


def test_no_row_runs_through_the_noise_of_another():
    """Seeds one step of splitmix apart would, were they its states."""
    step = -0x61C8864680B583EB
    a, b = normal_noise(torch.tensor([5, 5 + step]), 2000)
    assert abs(float(torch.corrcoef(torch.stack([a[1:1000], b[:999]]))[0, 1])) < 0.2


def test_noise_is_finite_for_all_bits(monkeypatch):
    extremes = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**32 - 1, 2**32, -(2**32)])
    monkeypatch.setattr("dpeq.data.views.splitmix64", lambda seeds, count: extremes.expand(len(seeds), -1))
    noise = normal_noise(torch.zeros(1, dtype=torch.int64), 14)
    assert noise.isfinite().all()
    assert 6.5 < noise.abs().max() < 7


def test_the_largest_distance_is_the_same_along_all_axes():
    augment = Augment(AugmentConfig(shift=4), 3, (0.5, 1.0, 3.0))
    moves = augment.moves(augment.draw(keys(), 500))
    assert moves.shift.abs().amax(0).tolist() == [4, 2, 0]
    rounded = Augment(AugmentConfig(shift=3), 2, (0.7, 1.4))
    assert rounded.moves(rounded.draw(keys(), 500)).shift.abs().amax(0).tolist() == [3, 1]


def test_what_cannot_be_done_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"augment\.flip names the axis z"):
        Augment(AugmentConfig(flip=("z",)), 2)
    with pytest.raises(ConfigError, match=r"augment\.tilt turns volumes"):
        Augment(AugmentConfig(tilt=5), 2)
    with pytest.raises(ConfigError, match=r"equal edges in the plane, these are 1 x 2 mm"):
        Augment(AugmentConfig(quarter_turns=True), 3, (1.0, 2.0, 1.0))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, math.inf), (1.0, math.nan)):
        with pytest.raises(ConfigError, match="not 2 positive numbers"):
            Augment(AugmentConfig(), 2, spacing)
    with pytest.raises(ConfigError, match="square in the plane, not 5 x 6 x 6"):
        Augment(AugmentConfig(quarter_turns=True), 3).check((5, 6, 6))
    with pytest.raises(ConfigError, match=r"augment\.shift moves images of 9 x 4 by up to 4 pixels"):
        Augment(AugmentConfig(shift=4), 2).check((9, 4))
    Augment(AugmentConfig(shift=3), 2).check((9, 4))
    with pytest.raises(ConfigError, match="2D images, not of the shape 4 x 4 x 4"):
        Augment(PIXELS, 2).check((4, 4, 4))
    augment = Augment(PIXELS, 2)
    draws = augment.draw(keys(), 3)
    with pytest.raises(ConfigError, match=r"augment\.shift"):
        augment(images(3, 1, 3, 9), draws)
    with pytest.raises(ValueError, match="3 rows of draws for 2 images"):
        augment(images(2, 1, 9, 9), draws)
    with pytest.raises(ValueError, match="floating-point images"):
        augment(images(3, 1, 9, 9).byte(), draws)
    with pytest.raises(ValueError, match="not of 3D views"):
        Augment(PIXELS, 3).moves(draws)
    with pytest.raises(ValueError, match="index by a slice"):
        draws[1]
    with pytest.raises(ValueError, match="dim is 1"):
        Augment(AugmentConfig(), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("config", "spatial"), SETTINGS)
def test_devices_make_the_same_views(config, spatial):
    augment = Augment(config, len(spatial))
    x, draws = images(16, 2, *spatial), augment.draw(keys(), 16)
    shown = augment(x.cuda(), draws)
    assert shown.is_cuda
    assert (shown.cpu() - augment(x, draws)).abs().max() < (1e-4 if config.interpolates else 1e-6)
    seeds = augment.moves(draws).seeds
    assert torch.equal(splitmix64(seeds.cuda(), 99).cpu(), splitmix64(seeds, 99))


NAMED = {"name": "RandGaussianNoise", "prob": 0.5, "std": 0.3}, {"name": "RandAxisFlip", "prob": 0.5}


@pytest.mark.parametrize("others", [{}, {"shift": 2, "rotate": 10.0, "noise": 0.1}], ids=["alone", "last"])
def test_named_transforms_look_at_their_own_row_alone(others):
    """Whatever else is in the physical batch, wherever the row stands in it, and whatever came before."""
    augment = Augment(AugmentConfig.model_validate({"transforms": NAMED, **others}), 2)
    x, draws = images(10, 2, 9, 8), augment.draw(keys(), 10)
    whole = augment(x, draws)
    for part in (torch.tensor([3]), torch.tensor([7, 3, 0]), torch.arange(4, 10)):
        torch.manual_seed(int(part[0]))
        assert torch.equal(augment(x[part], draws[part]), whole[part])
    again = Augment(AugmentConfig.model_validate({"transforms": NAMED, **others}), 2)
    x[1:] = 0  # other patients' images
    assert torch.equal(again(x, draws)[0], whole[0])


def test_named_transforms_change_no_draw_of_the_others():
    """What a seeded run did before a transform was named, it still does."""
    plain = AugmentConfig(noise=0.1, flip=("x",))
    named = plain.model_copy(update={"transforms": AugmentConfig.model_validate({"transforms": NAMED}).transforms})
    assert torch.equal(Augment(plain, 2).draw(keys(), 4).values, Augment(named, 2).draw(keys(), 4).values)
    x, draws = images(4, 1, 6, 6), Augment(plain, 2).draw(keys(), 4)
    quiet = AugmentConfig.model_validate({**plain.model_dump(), "transforms": [{"name": "RandFlip", "prob": 0.0}]})
    assert torch.equal(Augment(quiet, 2)(x, draws), Augment(plain, 2)(x, draws))


def test_rows_get_different_views_of_named_transforms_and_leave_the_images_alone():
    augment = Augment(AugmentConfig.model_validate({"transforms": [{**NAMED[0], "prob": 1.0}]}), 2)
    x = torch.zeros(64, 1, 8, 8)
    noise = augment(x, augment.draw(keys(), 64))
    assert not x.any()
    assert len({row.sum().item() for row in noise}) == 64
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.7
    assert noise.dtype == x.dtype
    assert augment(x.double(), augment.draw(keys(), 64)).dtype == torch.float64
    empty = torch.empty(0, dtype=torch.int64)
    assert augment(x[empty], augment.draw(keys(), 64)[empty]).shape == (0, 1, 8, 8)


def test_the_noise_and_the_named_transforms_have_seeds_of_their_own():
    """The noise of a row is not that of a transform of the same row."""
    augment = Augment(AugmentConfig(noise=1.0), 2)
    named = Augment(AugmentConfig.model_validate({"transforms": [{"name": "RandGaussianNoise", "prob": 1.0}] * 2}), 2)
    x, draws = torch.zeros(1, 1, 40, 40), augment.draw(keys(), 1)
    both = torch.stack([augment(x, draws).flatten(), named(x, draws).flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1
    single = Augment(AugmentConfig.model_validate({"transforms": [{"name": "RandGaussianNoise", "prob": 1.0}]}), 2)
    assert not torch.allclose(named(x, draws), 2 * single(x, draws)), "two transforms of a row have two seeds"


def test_named_transforms_that_images_cannot_have_are_refused_by_a_dry_run():
    turns = AugmentConfig.model_validate({"transforms": [{"name": "RandRotate90"}]})
    Augment(turns, 2).dry_run((1, 8, 8))
    with pytest.raises(
        ConfigError, match=r"augment.transforms: RandRotate90\(\) on an image of 1 x 8 x 9 gives 1 x 9 x 8"
    ):
        Augment(turns, 2).dry_run((1, 8, 9))
    with pytest.raises(ConfigError, match="did you mean 'RandFlip'"):
        Augment(AugmentConfig.model_validate({"transforms": [{"name": "RanFlip"}]}), 2)


def test_processes_can_compare_their_views():
    made = [repr(sorted(vars(Augment(AugmentConfig.model_validate({"transforms": NAMED}), 2)).items())) for _ in "ab"]
    assert made[0] == made[1]


def test_seeds_of_named_transforms_are_further_outputs_of_the_rows_generator(monkeypatch):
    """The first output is the noise's; what follows is cut to the 32 bits that numpy takes."""
    augment = Augment(AugmentConfig.model_validate({"transforms": NAMED}), 2)
    draws, seen = augment.draw(keys(), 3), []
    monkeypatch.setattr(type(augment._extras), "__call__", lambda self, x, seeds: seen.append(seeds) or x)
    augment(torch.zeros(3, 1, 4, 4), draws)
    words = splitmix64(augment.moves(draws).seeds, 3)[:, 1:]
    assert seen == [[(word >> 32) % 2**32 for word in row] for row in words.tolist()]
