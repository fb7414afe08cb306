"""Transforms of MONAI that a configuration names by class, with plain values as arguments; nothing is evaluated.

Only transforms that turn one array into one array of the same shape: those of MONAI's rooms ``intensity``, ``spatial``,
``croppad`` and ``smooth_field``. What reads or writes files, calls functions or mixes several images (Lambda,
LoadImage, TorchVision, MixUp, ...) is in none of them. The network's input has the shape that the settings say, so a
transform that changes it is refused, by a dry run on a made-up image before any data is read.

``data.transforms`` are applied once and cached, so they must give one image the same result every time; random ones
are for ``augment.transforms``, where each row of a batch is transformed by a fresh copy under a seed from that row's
own draws. The dry run also shows that a transform takes its random numbers from there: the same seed must give the
same view while all other generators of the process stand elsewhere.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from typing import Any

import monai
import numpy as np
import torch
from monai.transforms import MapTransform, Transform
from monai.transforms.traits import RandomizableTrait
from torch import Tensor

from dpeq.data.settings import ExtraTransform
from dpeq.errors import ConfigError

__all__ = ["Extras"]

_ROOMS = ("intensity", "spatial", "croppad", "smooth_field")
_DRY_SEEDS = (0, 1, 2)


class Extras:
    """The transforms of ``specs``, one after another.

    Args:
        key: of the configuration, for messages.
        random: whether they must be random, or must not.

    Raises:
        ConfigError: for a name that is not allowed, or arguments that the class refuses.
    """

    def __init__(self, specs: Sequence[ExtraTransform], key: str, *, random: bool) -> None:
        self.specs, self.key, self.random = tuple(specs), key, random
        self._templates = [_construct(spec, key, random) for spec in specs]

    def __len__(self) -> int:
        return len(self.specs)

    def __repr__(self) -> str:  # processes that share a run compare it
        return f"Extras({list(self.specs)!r})"

    def __call__(self, image: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """``image`` float32 ``[channels, *spatial]`` transformed, on the CPU; the argument stays as it is.

        Args:
            seeds: of random transforms, ``0 .. 2**32 - 1``, one for each.
        """
        if len(seeds) != (len(self) if self.random else 0):
            raise ValueError(f"there are {len(seeds)} seeds for {len(self)} transforms.")
        result = image.detach().cpu().clone()
        for number, template in enumerate(self._templates):
            transform = copy.deepcopy(template)  # so that nothing is carried from one image to the next
            if self.random:
                transform.set_random_state(seed=int(seeds[number]))
            result = _tensor(transform(result))
        return result

    def dry_run(self, shape: Sequence[int]) -> None:
        """Tries each transform on a made-up image of ``(channels, *spatial)``.

        Raises:
            ConfigError: when one fails, changes the shape, gives values that are not finite, or is not repeatable.
        """
        image = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        for spec, template in zip(self.specs, self._templates, strict=True):
            for seed in _DRY_SEEDS if self.random else (0,):
                results = []
                for dice in (0, 1):
                    transform = copy.deepcopy(template)
                    if self.random:
                        transform.set_random_state(seed=seed)
                        transform.prob = 1.0  # what is rarely done must be seen, too
                    with _dice(dice):
                        results.append(self._try(spec, transform, image))
                if not torch.equal(*results):
                    why = "draws random numbers that its seed does not decide" if self.random else "is not repeatable"
                    raise ConfigError(f"{self.key} names {spec.name}, which {why}; leave it out.")

    def _try(self, spec: ExtraTransform, transform: Any, image: Tensor) -> Tensor:
        called = f"{self.key}: {_call(spec)} on an image of {_by(image.shape)}"
        try:
            result = _tensor(transform(image.clone()))
        except Exception as error:  # another library's code on the user's values: anything may come
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{called} fails ({reason}); correct its arguments.") from error
        if result.shape != image.shape:
            raise ConfigError(f"{called} gives {_by(result.shape)}; only transforms that keep the shape can be added.")
        if not bool(torch.isfinite(result).all()):
            raise ConfigError(f"{called} gives values that are not finite; correct its arguments.")
        return result


@cache
def _known() -> dict[str, type[Transform]]:
    classes = {}
    for room in _ROOMS:
        module = importlib.import_module(f"monai.transforms.{room}.array")
        for name, value in vars(module).items():
            if (
                inspect.isclass(value)
                and issubclass(value, Transform)
                and not issubclass(value, MapTransform)
                and value.__module__ == module.__name__
            ):
                classes[name] = value
    return classes


def _construct(spec: ExtraTransform, key: str, random: bool) -> Any:
    name, known = spec.name, _known()
    if name not in known:
        if hasattr(monai.transforms, name):
            raise ConfigError(
                f"{key} names {name}, which is not one of MONAI's transforms of a single array in memory (its rooms "
                f"{', '.join(_ROOMS)}); use one of those."
            )
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "use the name of a class in monai.transforms."
        raise ConfigError(f"{key} names {name}, which MONAI {monai.__version__} does not have; {hint}")
    cls = known[name]
    is_random = issubclass(cls, RandomizableTrait)
    if is_random and not random:
        raise ConfigError(
            f"{key} names {name}, which is random, but its result would be kept and be the same in every step; name it "
            "in augment.transforms."
        )
    if random and not is_random:
        raise ConfigError(f"{key} names {name}, which is not random; name it in data.transforms, where it costs once.")
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for argument in spec.arguments:
            if argument not in parameters:
                near = get_close_matches(argument, parameters, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(parameters) or 'none'}."
                raise ConfigError(f"{key}: {name} takes no argument '{argument}'; {hint}")
    try:
        return cls(**spec.arguments)
    except Exception as error:  # as above
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{key}: {_call(spec)} cannot be made ({reason}); correct its arguments.") from error


@contextmanager
def _dice(number: int) -> Iterator[None]:
    """Puts all generators of the process elsewhere for a while."""
    plain, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # the generator that others share is the point
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.set_rng_state(torchs)


def _tensor(result: Any) -> Tensor:
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    if not isinstance(result, Tensor):
        raise TypeError(f"it gives a {type(result).__name__}, not one array")
    as_tensor = getattr(result, "as_tensor", None)  # MetaTensor and custom gradients do not mix
    return (as_tensor() if as_tensor is not None else result).float()


def _call(spec: ExtraTransform) -> str:
    return f"{spec.name}({', '.join(f'{name}={value!r}' for name, value in spec.arguments.items())})"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
