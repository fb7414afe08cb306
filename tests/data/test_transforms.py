"""From voxels to the network's input: reference values, and that every image stands alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, ResizeWithPadOrCrop, ScaleIntensityRange, Spacing

from dpeq.data.cards import load_card
from dpeq.data.readers.source import Volume
from dpeq.data.settings import ImageSettings
from dpeq.data.transforms import ImageTransform, foreground, scale_by_percentiles, slices_of
from dpeq.errors import ConfigError, DataError

PHANTOM = {"spacing": (10.0, 10.0, 10.0), "size": (32, 24, 16), "window": (-1000.0, 400.0)}


def placed(voxels: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    return Volume(np.ascontiguousarray(voxels, dtype=np.float32)[None], affine, "placed")


def flat(pixels: np.ndarray, edges: tuple[float, float] | None = None) -> Volume:
    """From ``[rows, columns]``."""
    affine = np.diag([*(edges or (1.0, 1.0)), 1.0, 1.0])
    voxels = np.ascontiguousarray(pixels.T, dtype=np.float32)[None, ..., None]
    return Volume(voxels, affine, "none" if edges is None else "scaled")


def smooth(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """A volume whose value is a linear function of the RAS position, so that interpolation is exact."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    return placed(ras @ [2.0, 3.0, 5.0], affine)


def test_the_phantom_hospital_is_transformed_as_ever():
    """Exactly the five lines that its published results were made with."""
    settings = load_card("phantom_hospital").preprocessing
    assert settings is not None
    assert {name: getattr(settings, name) for name in PHANTOM} == PHANTOM
    before = Compose(
        [
            Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacing(PHANTOM["spacing"], mode="bilinear", padding_mode="border"),
            ScaleIntensityRange(*PHANTOM["window"], -1.0, 1.0, clip=True),
            ResizeWithPadOrCrop(PHANTOM["size"], mode="constant", constant_values=-1.0),
        ]
    )
    voxels = np.random.default_rng(0).normal(-300, 400, size=(40, 37, 21)).astype(np.float32)
    for affine in (
        np.diag([-6.0, -6.0, 8.0, 1.0]),
        np.array([[0, -5.5, 0, 3], [-6, 0, 0, 9], [0, 0, 9, 4], [0, 0, 0, 1.0]]),
    ):
        expected = before(MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine))).as_tensor()
        assert torch.equal(ImageTransform(settings)(placed(voxels, affine))[0], expected.float())


def test_any_storage_order_gives_the_same_volume_in_ras():
    """The same field, stored along other axes and directions, at another spacing."""
    settings = ImageSettings(preset="ct", spacing=(3.0, 3.0, 3.0), size=(8, 8, 8), window=(-400.0, 400.0))
    ras = np.diag([2.0, 2.0, 2.0, 1.0])
    ras[:3, 3] = -15
    lps_swapped = np.array([[0, -2.0, 0, 15], [0, 0, -2.0, 15], [2.0, 0, 0, -15], [0, 0, 0, 1]])
    first = ImageTransform(settings)(smooth(ras, (16, 16, 16)))
    second = ImageTransform(settings)(smooth(lps_swapped, (16, 16, 16)))
    assert first.shape == (1, 1, 8, 8, 8)
    torch.testing.assert_close(first, second, atol=2e-3, rtol=0)
    steps = [float(first[0].diff(dim=d).mean()) * 400 / 3 for d in (1, 2, 3)]
    np.testing.assert_allclose(steps, [2, 3, 5], atol=0.05)  # per mm, along x, y, z


def test_the_window_is_fixed_and_air_fills_what_was_not_scanned():
    settings = ImageSettings(preset="ct", spacing=(2.0, 2.0, 2.0), size=(20, 20, 20), window=(-1000.0, 400.0))
    out = ImageTransform(settings)(placed(np.full((10, 10, 10), -300.0)))
    torch.testing.assert_close(out[0, 0, 5:15, 5:15, 5:15], torch.zeros(10, 10, 10), atol=1e-6, rtol=0)
    assert float(out[0, 0, 0, 0, 0]) == -1
    assert int((out > -0.5).sum()) == 1000
    assert float(ImageTransform(settings)(placed(np.full((30, 10, 10), 3000.0))).max()) == 1


def test_percentiles_are_of_the_image_without_its_padding():
    """Against a plain sort: nearest ranks of what is above the lowest value."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(500), rng.gamma(2.0, 100.0, 1228)])
    volume = placed(rng.permutation(values).reshape(12, 12, 12))
    out = ImageTransform(ImageSettings(preset="mr", size=(12, 12, 12), percentiles=(2, 90)))(volume)[0, 0]
    ranked = np.sort(volume.voxels[volume.voxels > 0])
    low, high = ranked[math.ceil(0.02 * 1228) - 1], ranked[math.ceil(0.90 * 1228) - 1]
    expected = np.clip((volume.voxels[0] - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    unpadded = scale_by_percentiles(torch.from_numpy(values[values > 0]).float(), 2, 90)
    assert abs(float(unpadded.max()) - 1) < 1e-6


def test_images_of_one_or_two_values_have_percentiles_too():
    constant = torch.full((1, 4, 4), 7.0)
    assert torch.equal(scale_by_percentiles(constant, 0.5, 99.5), torch.full((1, 4, 4), -1.0))
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 1:3] = 5.0
    assert torch.equal(scale_by_percentiles(mask, 0.5, 99.5), torch.where(mask > 0, 1.0, -1.0))


def test_gain_and_offset_of_a_scanner_do_not_matter_to_percentiles():
    """MR has arbitrary units: a x + b gives the same image, whatever the positive a."""
    voxels = np.random.default_rng(1).gamma(2.0, 1.0, (9, 9, 9))
    transform = ImageTransform(ImageSettings(preset="mr", size=(9, 9, 9)))
    torch.testing.assert_close(transform(placed(voxels)), transform(placed(37 * voxels + 400)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(preset="ct", size=(8, 8, 8), spacing=(3, 3, 3)),
        ImageSettings(preset="mr", size=(8, 8, 8), foreground="intensity"),
        ImageSettings(preset="mr", view="2.5d", size=(8, 8, 8)),
        ImageSettings(preset="mr", size=(8, 8, 8), foreground="mask"),
        ImageSettings(
            preset="mr",
            size=(8, 8, 8),
            transforms=[{"name": "NormalizeIntensity"}, {"name": "HistogramNormalize"}, {"name": "GaussianSmooth"}],
        ),
    ],
    ids=["ct", "mr", "slices", "mask", "extra"],
)
def test_what_becomes_of_an_image_depends_on_no_other_image(settings):
    rng = np.random.default_rng(0)
    image, *others = [placed(rng.normal(100, 10 ** rng.uniform(0, 4), (12, 11, 10))) for _ in range(4)]
    mask = placed(rng.random((12, 11, 10)) > 0.9)
    alone = ImageTransform(settings)(image, mask)
    busy = ImageTransform(settings)
    for other in others:
        busy(other, placed(rng.random((12, 11, 10)) > 0.5))
    assert torch.equal(busy(image, mask), alone)


def test_a_flat_image_has_its_rows_first_and_is_averaged_down():
    pixels = np.arange(24 * 16, dtype=np.float32).reshape(24, 16) % 255
    settings = ImageSettings(preset="generic", size=(8, 6))
    out = ImageTransform(settings)(flat(pixels))
    assert out.shape == (1, 1, 6, 8)
    blocks = pixels.reshape(6, 4, 8, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(out[0, 0].numpy(), blocks / 127.5 - 1, atol=1e-6)
    same = ImageTransform(ImageSettings(preset="generic", size=(16, 24)))(flat(pixels))
    np.testing.assert_allclose(same[0, 0].numpy(), pixels / 127.5 - 1, atol=1e-6)


def test_colours_are_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 1)).astype(np.float32)
    out = ImageTransform(ImageSettings(preset="generic", size=(8, 6)), channels=3)(Volume(pixels, np.eye(4), "none"))
    np.testing.assert_allclose(out[0].numpy(), pixels[..., 0].transpose(0, 2, 1) / 127.5 - 1, atol=1e-6)


def test_an_x_ray_with_a_pixel_spacing_is_resampled_to_millimetres():
    pixels = np.tile(np.arange(20.0), (12, 1))  # grows along a row
    settings = ImageSettings(preset="generic", size=(10, 12), spacing=(1.0, 0.5), window=(0, 19))
    out = ImageTransform(settings)(flat(pixels, (0.5, 0.5)))[0, 0]
    assert out.shape == (12, 10)
    np.testing.assert_allclose(np.diff(out.numpy(), axis=1), 2 * 2 / 19, atol=1e-5)  # two pixels a step
    np.testing.assert_allclose(np.diff(out.numpy(), axis=0), 0, atol=1e-6)


def radiological(affine: np.ndarray) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Slices of a volume with one bright voxel, whose RAS position is (12, 6, 9) mm from the first corner."""
    voxels = np.zeros((10, 10, 10))
    spot = np.linalg.solve(affine, [12, 6, 9, 1])[:3].round().astype(int)
    voxels[tuple(spot)] = 100
    settings = ImageSettings(preset="generic", view="2d", fit="pad", size=(10, 10, 10), window=(0, 100))
    out = ImageTransform(settings)(placed(voxels, affine))
    return out, tuple(torch.nonzero(out == 1)[0].tolist())


def test_slices_are_seen_as_radiologists_see_them():
    """The first row is anterior, the first column the patient's right, slices go up."""
    ras = np.diag([2.0, 2.0, 3.0, 1.0])
    out, (number, channel, row, column) = radiological(ras)
    assert out.shape == (10, 1, 10, 10)
    # R 12 mm is voxel 6 of 0 .. 9 from the left, so the fourth column from the right hand; A 6 mm is voxel 3.
    assert (number, channel, row, column) == (3, 0, 9 - 3, 9 - 6)
    turned = np.array([[0, 0, -2.0, 18], [-2.0, 0, 0, 18], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    same, place = radiological(turned)
    assert torch.equal(same, out)
    assert place == (number, channel, row, column)


def test_slices_across_another_axis_by_orientation():
    voxels = np.random.default_rng(0).uniform(0, 255, (6, 7, 8)).astype(np.float32)
    settings = ImageSettings(preset="generic", view="2d", fit="pad", size=(6, 8, 7), orientation="LIP")
    out = ImageTransform(settings)(placed(voxels))
    coronal = torch.from_numpy(voxels).flip(0, 1, 2).permute(1, 2, 0) / 127.5 - 1  # [P, I, L]
    torch.testing.assert_close(out[:, 0], coronal)


def test_neighbouring_slices_are_channels():
    volume = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    out = slices_of(volume, 3)
    assert out.shape == (5, 6, 4, 3)
    for z in range(5):
        for place, neighbour in enumerate((max(z - 1, 0), z, min(z + 1, 4))):
            assert torch.equal(out[z, 2 * place : 2 * place + 2], volume[..., neighbour].transpose(1, 2))
    assert torch.equal(slices_of(volume, 1), volume.permute(3, 0, 2, 1))
    assert slices_of(volume, 9).shape == (5, 18, 4, 3)


def test_slices_are_cropped_or_padded_to_their_number():
    settings = ImageSettings(preset="generic", view="2d", fit="pad", size=(6, 6, 4))
    deep = np.broadcast_to(np.arange(8.0), (6, 6, 8))
    assert ((ImageTransform(settings)(placed(deep))[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [2, 3, 4, 5]
    out = ImageTransform(settings)(placed(np.full((6, 6, 2), 255.0)))
    assert out[:, 0, 0, 0].tolist() == [-1, 1, 1, -1]


def test_the_foreground_is_cropped_out_with_a_margin():
    voxels = np.zeros((20, 20, 20))
    voxels[2:8, 3:9, 4:10] = 100 + np.arange(6)
    settings = ImageSettings(preset="generic", view="3d", fit="pad", size=(8, 8, 8), foreground="intensity", margin=1)
    out = ImageTransform(settings)(placed(voxels))[0, 0]
    expected = torch.from_numpy(voxels[1:9, 2:10, 3:11]).float() / 127.5 - 1
    torch.testing.assert_close(out, expected)
    mask = np.zeros((20, 20, 20))
    mask[3:7, 4:8, 5:9] = 2
    masked = ImageSettings(preset="generic", view="3d", fit="pad", size=(4, 4, 4), foreground="mask", margin=0)
    out = ImageTransform(masked)(placed(voxels), placed(mask))[0, 0]
    torch.testing.assert_close(out, torch.from_numpy(voxels[3:7, 4:8, 5:9]).float() / 127.5 - 1)


def test_a_mask_is_turned_and_resampled_with_its_image():
    """A bright box whose mask is the box itself fills the whole result, however the grid is stored."""
    voxels = np.zeros((12, 14, 16))
    voxels[2:8, 4:12, 6:14] = 255
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 4.0, 7], [-3.0, 0, 0, 9], [0, 0, 0, 1]])
    settings = ImageSettings(preset="generic", view="3d", fit="resize", size=(6, 6, 6), foreground="mask", margin=0)
    out = ImageTransform(settings)(placed(voxels, affine), placed(voxels, affine))
    assert float(out.min()) == 1
    resampled = settings.changed({"spacing": (2, 2, 2), "size": (4, 4, 4)})
    thin = np.zeros((12, 12, 12))
    thin[4:8, 4:8, 4:8] = 1
    fine = ImageSettings(preset="generic", view="3d", spacing=(1, 1, 1), size=(20, 20, 20), foreground="mask", margin=0)
    inside = ImageTransform(fine)(placed(np.full((12, 12, 12), 255.0)), placed(thin)) == 1
    assert int(inside.sum()) == 8**3, "the mask's own voxels, not what interpolation smears beyond them"
    assert float(ImageTransform(resampled)(placed(voxels, affine), placed(voxels, affine)).min()) == 1


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), 0.1), np.full((3, 7), -1e8 / 3)])
def test_the_foreground_of_a_constant_image_is_all_of_it(values):
    assert bool(foreground(torch.from_numpy(values).float()[None]).all())


def test_images_without_a_place_in_the_body_are_taken_as_stored():
    voxels = np.random.default_rng(0).uniform(0, 255, (6, 7, 8)).astype(np.float32)
    mirrored = np.diag([-1.0, -1.0, 1.0, 1.0])
    settings = ImageSettings(preset="generic", view="3d", fit="pad", size=(6, 7, 8))
    for geometry in ("none", "scaled"):
        out = ImageTransform(settings)(Volume(voxels[None], mirrored, geometry))[0, 0]
        np.testing.assert_allclose(out.numpy(), voxels / 127.5 - 1, atol=1e-6)
    out = ImageTransform(settings)(Volume(voxels[None], mirrored, "placed"))[0, 0]
    np.testing.assert_allclose(out.numpy(), voxels[::-1, ::-1] / 127.5 - 1, atol=1e-6)


def test_a_slice_with_a_place_in_the_body_is_turned_to_the_radiological_view():
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 6, 8, 1)).astype(np.float32)
    ras = np.diag([2.0, 2.0, 3.0, 1.0])
    settings = ImageSettings(preset="generic", size=(6, 8))
    out = ImageTransform(settings)(Volume(pixels, ras, "placed"))[0, 0]
    np.testing.assert_allclose(out.numpy(), pixels[0, ::-1, ::-1, 0].T / 127.5 - 1, atol=1e-6)
    coronal = np.array([[2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    with pytest.raises(DataError, match="not across the third axis of LPS"):
        ImageTransform(settings)(Volume(pixels, coronal, "placed"))
    seen = ImageTransform(settings.changed({"orientation": "LIP"}))(Volume(pixels, coronal, "placed"))[0, 0]
    np.testing.assert_allclose(seen.numpy(), pixels[0, ::-1, :, 0].T / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "volume", "mask", "reason"),
    [
        ({}, Volume(np.zeros((3, 8, 8, 8), np.float32), np.eye(4), "none"), None, "it has 3 channels"),
        ({}, flat(np.zeros((8, 8))), None, "it is a flat image"),
        ({"view": "2d", "size": (8, 8)}, placed(np.zeros((8, 8, 5))), None, "it has 5 slices"),
        ({"spacing": (1, 1, 1)}, Volume(np.zeros((1, 8, 8, 8), np.float32), np.eye(4), "none"), None, "no lengths"),
        ({"foreground": "mask"}, placed(np.zeros((8, 8, 8))), None, "no mask"),
        ({"foreground": "mask"}, placed(np.zeros((8, 8, 8))), placed(np.ones((8, 8, 9))), "another grid"),
        ({"foreground": "mask"}, placed(np.zeros((8, 8, 8))), placed(np.ones((8, 8, 8)), np.eye(4)), "another grid"),
        ({"foreground": "mask"}, placed(np.zeros((8, 8, 8))), placed(np.zeros((8, 8, 8))), "mask is empty"),
    ],
)
def test_images_that_the_settings_are_not_for_are_refused(settings, volume, mask, reason):
    with pytest.raises(DataError, match=reason):
        ImageTransform(ImageSettings(**{"preset": "ct", "size": (8, 8, 8), **settings}))(volume, mask)


def test_extra_transforms_are_applied_last_to_what_the_network_sees():
    rotate = [{"name": "Rotate90", "k": 1}]
    volume = placed(np.random.default_rng(0).uniform(0, 255, (6, 6, 5)))
    plain = ImageSettings(preset="generic", view="2d", fit="pad", size=(6, 6, 5))
    turned = plain.changed({"transforms": rotate})
    expected = torch.rot90(ImageTransform(plain)(volume), 1, (2, 3))
    assert torch.equal(ImageTransform(turned)(volume), expected)
    with pytest.raises(ConfigError, match=r"data.transforms: Rotate90\(k=1\) on an image of 1 x 5 x 6 gives 1 x 6 x 5"):
        ImageTransform(ImageSettings(preset="generic", size=(6, 5), transforms=rotate)).check()


@given(
    view=st.sampled_from(["3d", "2d", "2.5d"]),
    preset=st.sampled_from(["ct", "mr"]),
    fit=st.sampled_from(["pad", "resize"]),
    region=st.sampled_from(["none", "intensity"]),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    size=st.tuples(*[st.integers(4, 9)] * 3),
    seed=st.integers(0, 100),
)
def test_every_image_has_the_shape_and_range_that_the_settings_say(view, preset, fit, region, shape, size, seed):
    settings = ImageSettings(preset=preset, view=view, fit=fit, size=size, foreground=region)
    rng = np.random.default_rng(seed)
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.uniform(0.5, 4, 3) * rng.choice([-1, 1], 3)
    out = ImageTransform(settings)(placed(rng.normal(0, 800, shape), turn))
    assert out.shape == (settings.images_per_record, *settings.shape(1))
    assert type(out) is torch.Tensor
    assert out.is_contiguous()
    assert -1 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 1, 3), (3, 2, 1, 0)])
def test_how_voxels_lie_in_memory_does_not_matter(order):
    """Readers give views of slices as files hold them."""
    voxels = np.random.default_rng(0).normal(100, 300, (1, 7, 6, 5)).astype(np.float32)
    stored = np.ascontiguousarray(voxels.transpose(order)).transpose(np.argsort(order))
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 4.0, 7], [-3.0, 0, 0, 9], [0, 0, 0, 1]])
    transform = ImageTransform(ImageSettings(preset="mr", size=(8, 8, 8), spacing=(2, 2, 2)))
    expected = transform(Volume(voxels, affine, "placed"))
    assert torch.equal(transform(Volume(stored, affine, "placed")), expected)
