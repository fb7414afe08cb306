"""Data set cards: what a data set is, where it comes from, and what may be assumed of it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpeq.data.settings import ImageSettings
from dpeq.errors import ConfigError
from dpeq.resources import room

__all__ = ["Card", "Symmetries", "card_names", "load_card"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Symmetries(_Part):
    """What is known of the symmetry of the images; :mod:`dpeq.advice` reads from it which groups are sound.

    Attributes:
        laterality_matters: some classes differ only as an image and its mirror image do, such as a left and a right
            kidney.
        isotropic: one pixel or voxel step means the same length along every axis (of volumes: within a slice and
            between slices, as acquired).
        orientation_matters: the label itself depends on how the image is turned, such as prone and supine.
        aligned: the images arrive in one pose; turned copies of an image do not occur.
        mirrored_classes: the pairs of classes that a mirror swaps, where laterality matters.
        note: the reasons, in words.
    """

    laterality_matters: bool
    isotropic: bool
    orientation_matters: bool
    aligned: bool = False
    mirrored_classes: tuple[tuple[str, str], ...] = ()
    note: str

    @model_validator(mode="after")
    def _mirrors_go_with_laterality(self) -> Symmetries:
        if self.mirrored_classes and not self.laterality_matters:
            raise ValueError("mirrored_classes names classes that a mirror swaps, so laterality_matters must be true")
        for pair in self.mirrored_classes:
            if pair[0] == pair[1]:
                raise ValueError(f"mirrored_classes pairs '{pair[0]}' with itself; name two classes")
        return self


Edge = Annotated[int, Field(ge=4)]


class GeneratorOptions(_Part):
    """Arguments of a generated data set."""

    patients: int = Field(ge=8)
    seed: int = Field(ge=0)


class Card(_Part):
    """One data set.

    Attributes:
        kind: "medmnist", one downloaded file; "folder", whatever ``dpeq index`` has made a manifest of.
        public_units: the published number of training units that a plan may rest on.
        channels: of every image, 1 for grey values and 3 for colours.
        preprocessing: of a folder; :class:`~dpeq.config.DataConfig` replaces it key by key.
    """

    name: str
    title: str
    kind: Literal["medmnist", "folder"]
    source: str
    licence: str
    citation: str
    modality: str
    dim: Literal[2, 3]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    unit: Literal["image", "patient"]
    public_units: int = Field(ge=1)
    splits: dict[Literal["train", "val", "test"], int]
    symmetries: Symmetries
    url: str | None = None
    file: str | None = None
    md5: str | None = None
    image_size: tuple[Edge, ...] | None = None
    generator: str | None = None
    generator_options: GeneratorOptions | None = None
    channels: Literal[1, 3] = 1
    preprocessing: ImageSettings | None = None

    @model_validator(mode="after")
    def _kinds_are_complete(self) -> Card:
        if self.kind == "medmnist" and not (self.url and self.file and self.md5 and self.image_size):
            raise ValueError("a medmnist card needs url, file, md5 and image_size")
        if self.image_size is not None and len(self.image_size) != self.dim:
            raise ValueError(f"image_size {list(self.image_size)} does not have {self.dim} numbers")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        unknown = [c for pair in self.symmetries.mirrored_classes for c in pair if c not in self.classes]
        if unknown:
            raise ValueError(
                f"mirrored_classes names '{unknown[0]}', which is none of the classes {list(self.classes)}"
            )
        if self.kind == "medmnist" and (self.channels != 1 or self.preprocessing is not None):
            raise ValueError("a medmnist file has one channel and needs no preprocessing")
        if self.kind == "folder" and self.preprocessing is None:
            raise ValueError("a folder card needs preprocessing: preset and size")
        if self.preprocessing is not None and (self.preprocessing.view == "3d") != (self.dim == 3):
            raise ValueError(f"dim is {self.dim} but preprocessing has the view {self.preprocessing.view}")
        if self.splits.get("train") != self.public_units:
            raise ValueError("public_units and splits.train tell the same number; they differ")
        return self


def card_names() -> list[str]:
    """The shipped cards."""
    return sorted(path.stem for path in room("datasets").joinpath("cards").glob("*.yaml"))


def load_card(name: str) -> Card:
    """The card called ``name``, or the YAML file of that path; raises :class:`ConfigError` in one sentence."""
    folder = room("datasets") / "cards"
    path = folder / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    if not path.is_file():
        near = get_close_matches(name, card_names(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(card_names())}, or a YAML file."
        raise ConfigError(f"There is no data set card '{name}'; {hint}")
    try:
        return Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'the card'}: {first['msg'][0].lower()}{first['msg'][1:]}"
        else:
            reason = " ".join(str(error).split())
        raise ConfigError(f"The data set card {path} is not valid ({reason}); mend that entry.") from error
