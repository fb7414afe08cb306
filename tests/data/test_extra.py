"""MONAI's transforms by name: which are allowed, that nothing is evaluated, that seeds decide everything random."""

from __future__ import annotations

import builtins
import random

import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth, RandGaussianNoise

from dpeq.data.extra import Extras
from dpeq.data.settings import ExtraTransform
from dpeq.errors import ConfigError

KEYS = {False: "data.transforms", True: "augment.transforms"}
RANDOM = [
    {"name": "RandAdjustContrast", "prob": 0.7},
    {"name": "RandBiasField", "prob": 0.7},
    {"name": "RandCoarseDropout", "holes": 2, "spatial_size": 3, "prob": 0.7},
    {"name": "RandCoarseShuffle", "holes": 2, "spatial_size": 3, "prob": 0.7},
    {"name": "RandGaussianNoise", "prob": 0.7},
    {"name": "RandGaussianSharpen", "prob": 0.7},
    {"name": "RandGaussianSmooth", "prob": 0.7},
    {"name": "RandGibbsNoise", "prob": 0.7},
    {"name": "RandHistogramShift", "prob": 0.7},
    {"name": "RandKSpaceSpikeNoise", "prob": 0.7},
    {"name": "RandRicianNoise", "prob": 0.7},
    {"name": "RandScaleIntensity", "factors": 0.2, "prob": 0.7},
    {"name": "RandAffine", "rotate_range": 0.3, "translate_range": 2, "prob": 0.7},
    {"name": "RandAxisFlip", "prob": 0.7},
    {"name": "Rand2DElastic", "spacing": [4, 4], "magnitude_range": [1, 2], "prob": 0.7},
    {"name": "RandGridDistortion", "prob": 0.7},
    {"name": "RandRotate", "range_x": 0.5, "prob": 0.7},
    {"name": "RandRotate90", "prob": 0.7},
    {"name": "RandZoom", "prob": 0.7},
    {"name": "RandSmoothFieldAdjustIntensity", "spatial_size": [12, 12], "rand_size": [3, 3], "prob": 0.7},
]


def extras(*specs: dict[str, object], random: bool = False) -> Extras:
    return Extras([ExtraTransform.model_validate(spec) for spec in specs], KEYS[random], random=random)


def image(seed: int = 0, shape: tuple[int, ...] = (1, 12, 12)) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_transform_of_monai_is_called_with_its_arguments():
    x = image()
    kept = x.clone()
    out = extras({"name": "GaussianSmooth", "sigma": 1.5})(x)
    assert torch.equal(out, GaussianSmooth(sigma=1.5)(x).as_tensor())
    assert type(out) is torch.Tensor
    assert torch.equal(x, kept), "the argument stays as it is"
    both = extras({"name": "ScaleIntensity"}, {"name": "Rotate90", "k": 2})
    assert torch.equal(both(x), torch.rot90(extras({"name": "ScaleIntensity"})(x), 2, (1, 2)))


@pytest.mark.parametrize(
    "name",
    ["Lambda", "RandLambda", "LoadImage", "SaveImage", "TorchVision", "TorchIO", "CuCIM", "SimulateDelay", "DataStats",
     "WriteFileMapping", "Compose", "OneOf", "MixUp", "CutMix", "GaussianSmoothd", "ToDevice", "IntensityStats"],
)  # fmt: skip
def test_what_does_more_than_change_one_array_is_refused(name):
    """Among them MixUp, which would put other patients' images into a unit's rows."""
    for chance in (False, True):
        with pytest.raises(ConfigError, match=f"names {name}, which is not one of MONAI's"):
            extras({"name": name}, random=chance)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(
        ConfigError, match=r"GausianSmooth, which MONAI .* does not have; did you mean 'GaussianSmooth'\?"
    ):
        extras({"name": "GausianSmooth"})
    with pytest.raises(ConfigError, match="use the name of a class in"):
        extras({"name": "Xyzzy"})


def test_random_transforms_are_for_views_and_others_for_the_data():
    with pytest.raises(ConfigError, match=r"names RandFlip, which is random, .* name it in augment.transforms"):
        extras({"name": "RandFlip"})
    with pytest.raises(ConfigError, match=r"names GaussianSmooth, which is not random; name it in data\.transforms"):
        extras({"name": "GaussianSmooth"}, random=True)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "GaussianSmooth", "sgima": 1}, "GaussianSmooth takes no argument 'sgima'; did you mean 'sigma'?"),
        ({"name": "GaussianSmooth", "zzz": 1}, "takes no argument 'zzz'; it takes sigma, approx"),
        ({"name": "AdjustContrast"}, "'gamma'"),
        ({"name": "SpatialCrop", "roi_size": 4}, "SpatialCrop(roi_size=4) cannot be made"),
        ({"name": "GaussianSmooth", "sigma": "wide"}, "GaussianSmooth(sigma='wide') on an image of 1 x 12 x 12 fails"),
        ({"name": "CenterSpatialCrop", "roi_size": 5}, "gives 1 x 5 x 5; only transforms that keep the shape"),
        ({"name": "GridSplit"}, "it gives a list, not one array"),
        ({"name": "Affine"}, "it gives a tuple, not one array"),
        ({"name": "ShiftIntensity", "offset": 1e39}, "values that are not finite"),
    ],
)
def test_wrong_arguments_are_one_sentence_that_names_transform_and_argument(spec, reason):
    with pytest.raises(ConfigError) as caught:
        extras(spec).dry_run((1, 12, 12))
    assert reason in str(caught.value)
    assert str(caught.value).startswith("data.transforms")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["$__import__('os').abort()", "lambda x: x", "${oc.env:HOME}", "@image", "%image"])
def test_text_is_never_evaluated(text, monkeypatch):
    """It reaches the class as it stands, which then cannot use it; nothing is compiled on the way."""
    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(builtins, name, lambda *a, **k: pytest.fail("something was evaluated"))
    made = extras({"name": "GaussianSmooth", "sigma": text}, {"name": "CropForeground", "select_fn": text})
    assert [t.sigma for t in made._templates[:1]] == [text]
    assert made._templates[1].select_fn == text
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="fails"):
        made.dry_run((1, 12, 12))


@pytest.mark.parametrize("spec", RANDOM, ids=lambda spec: str(spec["name"]))
def test_the_seed_alone_decides_a_random_transform(spec):
    made = extras(spec, random=True)
    made.dry_run((1, 12, 12))
    x = image()
    views = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        made(image(state), [state])  # what came before does not matter either
        views.append([made(x, [seed]) for seed in range(8)])
    for first, second in zip(*views, strict=True):
        assert torch.equal(first, second)
    assert any(not torch.equal(views[0][0], view) for view in views[0][1:]), "other seeds give other views"


def test_seeds_are_those_that_monai_takes():
    reference = RandGaussianNoise(prob=1.0).set_random_state(seed=12345)
    made = extras({"name": "RandGaussianNoise", "prob": 1.0}, random=True)
    assert torch.equal(made(image(), [12345]), reference(image()).as_tensor())
    made(image(), [2**32 - 1])
    with pytest.raises(ValueError, match="1 seeds for 2"):
        extras({"name": "RandFlip"}, {"name": "RandFlip"}, random=True)(image(), [1])


def test_a_transform_that_draws_elsewhere_is_found_out():
    """RandIntensityRemap of MONAI 1.6 does; so would one that is not marked as random."""
    with pytest.raises(
        ConfigError, match="RandIntensityRemap, which draws random numbers that its seed does not decide"
    ):
        extras({"name": "RandIntensityRemap"}, random=True).dry_run((1, 12, 12))

    def crooked(x: torch.Tensor) -> torch.Tensor:
        return x + float(np.random.rand())  # noqa: NPY002

    made = extras({"name": "GaussianSmooth"})
    made._templates = [crooked]
    with pytest.raises(ConfigError, match="is not repeatable"):
        made.dry_run((1, 12, 12))


def test_a_rare_change_of_shape_is_found_out():
    with pytest.raises(ConfigError, match="keep the shape"):
        extras({"name": "RandRotate90", "prob": 1e-6}, random=True).dry_run((1, 12, 10))
    extras({"name": "RandRotate90", "prob": 1e-6}, random=True).dry_run((1, 12, 12))


def test_a_dry_run_leaves_all_generators_where_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    extras({"name": "RandGaussianNoise"}, random=True).dry_run((1, 12, 12))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_processes_can_compare_them():
    same = [repr(extras({"name": "GaussianSmooth", "sigma": 2.0})) for _ in range(2)]
    assert same[0] == same[1] != repr(extras({"name": "GaussianSmooth", "sigma": 3.0}))


def test_nothing_is_carried_from_one_image_to_the_next():
    """A transform that remembers what it saw starts afresh with every image."""

    class Remembers:
        def __init__(self) -> None:
            self.seen = 0.0

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += float(x.mean())
            return x - self.seen

    made = extras({"name": "GaussianSmooth"})
    made._templates = [Remembers()]
    alone = made(image(0))
    made(image(1))
    assert torch.equal(made(image(0)), alone)
