"""Any network by its import path: MONAI's, torchvision's, or one of your own.

>>> ForeignSpec("monai.networks.nets.DenseNet121", 2, {"norm": ["group", {"num_groups": 8}]}).architecture
'DenseNet121 of monai.networks.nets'

A path is ``package.module.Name`` or ``package.module:Name``; whatever it names is imported and called, so a recipe with
a foreign network is as trusted as a program. Input channels, classes and the number of spatial axes are passed under
whichever of the usual names the callable accepts.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import metadata
from typing import Any, get_type_hints

from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.models.wide_resnet import norm_groups_for

__all__ = ["ForeignSpec", "PooledOutput", "batch_norms_replaced", "import_callable"]

_IN_CHANNELS = ("in_channels", "n_input_channels", "in_chans", "input_channels", "num_channels", "img_channels")
_CLASSES = ("num_classes", "n_classes", "out_channels", "classes", "num_outputs")
_DIM = ("spatial_dims", "dimensions", "dim")


@dataclass(frozen=True)
class ForeignSpec:
    """A network that dpeq did not write.

    Attributes:
        path: where to import it from, such as "torchvision.models.resnet18" or "mypackage.module:Network".
        dim: 2 for images, 3 for volumes.
        arguments: keyword arguments of the callable; they win over what dpeq would pass.
        replace_batch_norm: put a group norm in the place of every batch norm, and let instance norms keep no running
            statistics. Networks often write their norm down where no argument reaches it.
        pool_output: average a map of scores ``[N, classes, *spatial]`` over its positions, which makes a classifier of
            a segmentation network; of several outputs the first is taken.
    """

    path: str
    dim: int
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    replace_batch_norm: bool = False
    pool_output: bool = False

    restriction = "none"

    @property
    def group(self) -> str:
        return "trivial" if self.dim == 2 else "trivial-3d"

    @property
    def architecture(self) -> str:
        module, _, name = self.path.replace(":", ".").rpartition(".")
        return f"{name} of {module}"

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Imports and calls.

        Raises:
            ConfigError: when there is no such network, its arguments do not fit, or it does not give a torch module.
        """
        network = import_callable(self.path)
        arguments = self._arguments(network, in_channels, classes)
        try:
            model = network(**arguments)
        except Exception as error:  # the constructor is foreign: whatever it raises, the user's arguments are the mend
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"'{self.path}' could not be built from {sorted(arguments)}: {reason}") from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"'{self.path}' gives a {type(model).__name__}; name a torch module or what builds one.")
        if self.replace_batch_norm:
            model = batch_norms_replaced(model)
        if self.pool_output:
            model = PooledOutput(model)
        return model

    def describe(self) -> dict[str, Any]:
        package = self.path.replace(":", ".").split(".")[0]
        owners = metadata.packages_distributions().get(package, [])
        return {
            "path": self.path,
            "arguments": dict(self.arguments),
            "package": package,
            "package_version": metadata.version(owners[0]) if owners else None,
            "replace_batch_norm": self.replace_batch_norm,
            "pool_output": self.pool_output,
        }

    def _arguments(self, network: Callable[..., Any], in_channels: int, classes: int) -> dict[str, Any]:
        """What the callable is given: the user's arguments, and what it accepts of ours."""
        accepted, open_ended = _keywords(network)
        unknown = [name for name in self.arguments if name not in accepted]
        if unknown and not open_ended:
            near = get_close_matches(unknown[0], accepted, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes: {', '.join(accepted)}."
            raise ConfigError(f"'{self.path}' takes no argument '{unknown[0]}'; {hint}")
        given = dict(self.arguments)
        for names, value in ((_IN_CHANNELS, in_channels), (_CLASSES, classes), (_DIM, self.dim)):
            if not any(name in given for name in names):
                name = next((name for name in names if name in accepted), None)
                if name is None and names is _CLASSES and open_ended:
                    name = "num_classes"  # what builders that hide their arguments behind **kwargs mostly take
                if name is not None:
                    given[name] = value
        missing = [name for name, needed in accepted.items() if needed and name not in given]
        if missing:
            raise ConfigError(f"'{self.path}' needs {', '.join(missing)}; give them in model.arguments.")
        return given


class PooledOutput(nn.Module):
    """A network whose (first) output ``[N, classes, *spatial]`` is averaged over positions: ``[N, classes]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        if isinstance(y, (tuple, list)):
            y = y[0]
        return y.flatten(2).mean(2) if y.dim() > 2 else y


def import_callable(path: str) -> Callable[..., Any]:
    """What ``package.module.Name`` or ``package.module:Name`` names.

    Raises:
        ConfigError: when a part of the path does not exist or what it names cannot be called.
    """
    place, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not place or not name:
        raise ConfigError(f"'{path}' is not an import path; write package.module.Name.")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if not (place == missing or place.startswith(f"{missing}.")):
            raise ConfigError(f"'{place}' could not be imported because it needs '{missing}'; install that.") from error
        where = "install its package, or start dpeq where it can be imported"
        raise ConfigError(f"There is no module '{missing}' for the network '{path}'; {where}.") from error
    except Exception as error:  # foreign code runs at import
        raise ConfigError(f"'{place}' could not be imported: {' '.join(str(error).split())}") from error
    found = getattr(module, name, None)
    if found is None:
        near = get_close_matches(name, dir(module), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "look up how it is called."
        raise ConfigError(f"There is no '{name}' in '{place}'; {hint}")
    if not callable(found):
        raise ConfigError(f"'{path}' is a {type(found).__name__}; name a class or a function that builds a network.")
    return found


def batch_norms_replaced(model: nn.Module) -> nn.Module:
    """The network with a group norm for every batch norm, and with instance norms that look at one image alone.

    Group norms get the largest divisor of the channels up to 16 that leaves two channels to a group. The network is
    changed in place (and returned, because it may be a norm itself).
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return nn.GroupNorm(norm_groups_for(model.num_features), model.num_features, model.eps, affine=model.affine)
    if isinstance(model, nn.modules.instancenorm._InstanceNorm) and model.track_running_stats:
        return type(model)(model.num_features, model.eps, affine=model.affine)
    for name, layer in model.named_children():
        setattr(model, name, batch_norms_replaced(layer))
    return model


def _keywords(network: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Names of the keyword arguments, each with whether it is required, and whether any other name is taken too.

    A class that passes ``**kwargs`` on to its base accepts the base's names; a function that does so, as the builders
    of MONAI and torchvision do, those of the class that it says to return.
    """
    accepted: dict[str, bool] = {}
    constructors = _constructors(network)
    if not inspect.isclass(network):
        constructors = [network, *_constructors(_returned(network))]
    for position, constructor in enumerate(constructors):
        parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name != "self"]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                # What comes further in, the one in front may give.
                accepted.setdefault(p.name, p.default is p.empty and position == 0)
        if constructor is nn.Module.__init__ or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, False
    return accepted, True


def _returned(network: Callable[..., Any]) -> type | None:
    """The class of module that a function is annotated to return."""
    try:
        kind = get_type_hints(network).get("return") if inspect.isfunction(network) else None
    except NameError:  # an annotation that only a type checker can resolve says nothing here
        return None
    return kind if inspect.isclass(kind) and issubclass(kind, nn.Module) else None


def _constructors(kind: Any) -> list[Any]:
    return [c.__init__ for c in kind.__mro__ if "__init__" in vars(c)] if inspect.isclass(kind) else []
