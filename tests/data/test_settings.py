"""Presets, what overrides them, and what does not fit together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dpeq.data.settings import ExtraTransform, ImageSettings


def test_presets_say_what_a_kind_of_image_needs():
    ct = ImageSettings(preset="ct", size=(8, 8, 8))
    assert (ct.window, ct.percentiles, ct.view, ct.fit, ct.axes) == ((-1000, 1000), None, "3d", "pad", "RAS")
    mr = ImageSettings(preset="mr", size=(8, 8, 8))
    assert (mr.window, mr.percentiles, mr.view, mr.fit) == (None, (0.5, 99.5), "3d", "pad")
    xray = ImageSettings(preset="xray", size=(8, 9))
    assert (xray.percentiles, xray.view, xray.fit, xray.shape(1)) == ((0.5, 99.5), "2d", "resize", (1, 9, 8))
    picture = ImageSettings(preset="generic", size=(8, 9))
    assert (picture.window, picture.view, picture.shape(3)) == ((0, 255), "2d", (3, 9, 8))


def test_every_key_overrides_the_preset():
    settings = ImageSettings(preset="ct", size=(8, 9, 5), percentiles=(1, 99), view="2.5d", foreground="mask")
    assert (settings.window, settings.percentiles, settings.axes) == (None, (1, 99), "LPS")
    assert (settings.slices, settings.margin) == (3, 2)
    assert settings.shape(1) == (3, 9, 8)
    assert settings.images_per_record == 5
    assert ImageSettings(preset="xray", size=(8, 9), spacing=(0.5, 0.25)).fit == "pad"


def test_written_settings_read_back_equal():
    for settings in (
        ImageSettings(preset="mr", size=(8, 9, 5), view="2.5d", transforms=[{"name": "GaussianSmooth", "sigma": 1.0}]),
        ImageSettings(preset="xray", size=(8, 9), foreground="intensity"),
    ):
        assert ImageSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_changes_replace_what_they_contradict():
    card = ImageSettings(preset="ct", spacing=(2, 2, 2), size=(8, 8, 8), window=(-160, 240))
    assert card.changed({"preset": None, "window": None}) == card
    assert card.changed({"percentiles": (1, 99)}).window is None
    other = card.changed({"preset": "mr"})
    assert (other.percentiles, other.window, other.spacing) == ((0.5, 99.5), None, (2, 2, 2))
    slices = card.changed({"view": "2.5d", "slices": 5, "orientation": "LIA"})
    assert (slices.shape(1), slices.axes, slices.pixel_spacing) == ((5, 8, 8), "LIA", (2, 2))
    assert slices.changed({"view": "3d"}).axes == "RAS"
    picture = ImageSettings(preset="xray", size=(8, 8))
    assert picture.changed({"spacing": (1, 2)}).fit == "pad"
    assert picture.changed({"spacing": (1, 2)}).pixel_spacing == (2, 1)
    masked = ImageSettings(preset="ct", size=(8, 8, 8), foreground="mask")
    assert masked.changed({"foreground": "none"}).margin is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"preset": "pet", "size": (8, 8, 8)}, "'ct', 'mr', 'xray' or 'generic'"),
        ({"size": (8, 8)}, "three numbers"),
        ({"size": (8, 8, 3)}, "too small"),
        ({"size": (8, 8, 8, 8)}, "at most 3"),
        ({"view": "2d", "size": (3, 8)}, "too small"),
        ({"window": (5, 5)}, "lower end first"),
        ({"window": (0, float("inf"))}, "finite"),
        ({"percentiles": (99, 1)}, "lower end first"),
        ({"percentiles": (1, 101)}, "less than or equal to 100"),
        ({"window": (0, 1), "percentiles": (1, 99)}, "not both"),
        ({"orientation": "RAR"}, "one letter of each pair"),
        ({"orientation": "RA"}, "one letter of each pair"),
        ({"spacing": (1, 1)}, "different axes"),
        ({"spacing": (1, 0, 1)}, "greater than 0"),
        ({"spacing": (1, 1, 1), "fit": "resize"}, "change the spacing again"),
        ({"slices": 3}, "Slices are for the view 2.5d"),
        ({"view": "2.5d", "slices": 4}, "odd number"),
        ({"margin": 3}, "foreground"),
        ({"transforms": [{"sigma": 1}]}, "Field required"),
        ({"transforms": [{"name": "a.b"}]}, "pattern"),
        ({"transforms": [{"name": "A", "f": print}]}, "argument f of A is no plain"),
        ({"transforms": [{"name": "A", "f": [float("nan")]}]}, "argument f of A is no plain"),
        ({"transforms": [{"name": "A", "_target_": "os.abort"}]}, "argument _target_ of A is no plain"),
        ({"transforms": [{"name": "A", "f": [{"_target_": "os.abort"}]}]}, "argument f of A is no plain"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, reason):
    with pytest.raises(ValidationError, match=reason):
        ImageSettings.model_validate({"preset": "ct", "size": (8, 8, 8), **values})


def test_arguments_of_a_transform_stay_what_they_are():
    extra = ExtraTransform.model_validate({"name": "Foo", "a": "$1 + 1", "b": [1, None, {"c": True}]})
    assert extra.arguments == {"a": "$1 + 1", "b": [1, None, {"c": True}]}
    assert extra.model_dump(mode="json") == {"name": "Foo", "a": "$1 + 1", "b": [1, None, {"c": True}]}
