"""Non-linearities that commute with the group, for every kind of field.

A function applied to each channel commutes with permutations of channels and with nothing else. Other fields take one
of three ways (Weiler & Cesa 2019; Cesa, Lang & Weiler 2022): a Fourier field is sampled on the
group, where it is a function like any other (:class:`FourierActivation`); its scalar part opens and closes a gate for
the rest (:class:`GatedActivation`); or every irreducible part is scaled by a function of its own length
(:class:`NormActivation`). All are smooth, because a kink in the samples of a band-limited function folds back as error.

>>> from dpeq.groups import group
>>> activation_for(FieldType(group("D4"), "regular", 3))
Mish()
>>> activation_for(FieldType(group("SO2"), "fourier:2", 3))
FourierActivation(SO2: 3 fourier:2, angles=16, Mish())
>>> activation_for(FieldType(group("D4"), "irrep:2", 3))
NormActivation(D4: 3 irrep:2, mish)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup, group
from dpeq.nn.fields import FieldType
from dpeq.nn.layer import UnitLayer, per_field_sums
from dpeq.representations import fourier_samples

__all__ = ["FUNCTIONS", "FourierActivation", "GatedActivation", "NormActivation", "activation_for", "default_angles"]

FUNCTIONS: dict[str, type[nn.Module]] = {
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def activation_for(field_type: FieldType, function: str = "mish") -> nn.Module:
    """The usual non-linearity of a kind of field, ``[N, channels, *spatial]`` to the same.

    Args:
        field_type: permutation fields get the function itself, Fourier fields :class:`FourierActivation`, all others
            :class:`NormActivation`, which has a trainable bias.
        function: one of :data:`FUNCTIONS`.

    Raises:
        ConfigError: for an unknown function, or one that :class:`NormActivation` does not have.
    """
    if field_type.rep.is_permutation:
        return _pointwise(function)
    if _fourier(field_type) is not None:
        return FourierActivation(field_type, function)
    return NormActivation(field_type, function)


def _pointwise(function: str) -> nn.Module:
    if function not in FUNCTIONS:
        raise ConfigError(f"There is no activation '{function}'; use one of: {', '.join(FUNCTIONS)}.")
    return FUNCTIONS[function]()


def _fourier(field_type: FieldType) -> tuple[SymmetryGroup, int] | None:
    """The continuous group and the band limit of a Fourier field, also when a subgroup looks at it."""
    whole, name = field_type.group, field_type.representation
    while name.startswith("restricted:"):
        _, larger, name = name.split(":", 2)
        whole = group(larger)
    kind, _, band = name.partition(":")
    return (whole, int(band)) if kind == "fourier" else None


def default_angles(band: int) -> int:
    """Angles at which a field of that band is sampled: at least twice its ``2 band + 1`` numbers, a multiple of 8.

    Rotations by multiples of the sampling angle permute the samples, so multiples of 45 degrees, among them all that
    keep the grid, commute with the activation exactly; other angles up to the aliasing of the sampled function.

    >>> [default_angles(band) for band in (1, 2, 3, 4)]
    [8, 16, 16, 24]
    """
    return -(-2 * (2 * band + 1) // 8) * 8


class FourierActivation(nn.Module):
    """Samples each Fourier field on the group, applies a function to the samples and transforms back.

    Cesa, Lang & Weiler 2022 (ICLR). No parameters.

    Args:
        field_type: ``fourier:L`` fields of a continuous group, or a subgroup's view of them.
        function: one of :data:`FUNCTIONS`.
        angles: sampling angles (each also mirrored where the group is); :func:`default_angles` if not given.

    Raises:
        ConfigError: for fields that are no Fourier fields, or too few angles for their band.
    """

    def __init__(self, field_type: FieldType, function: str = "mish", angles: int | None = None) -> None:
        super().__init__()
        found = _fourier(field_type)
        if found is None:
            raise ConfigError(
                f"A Fourier activation needs fourier:L fields, not {field_type.representation} fields of "
                f"{field_type.group.name}; use activation_for."
            )
        whole, band = found
        self.field_type = field_type
        self.angles = default_angles(band) if angles is None else angles
        samples = torch.from_numpy(fourier_samples(whole, band, self.angles)).to(torch.get_default_dtype())
        # Constants, not buffers: Opacus refuses layers with floating buffers.
        self.samples, self.back = samples, samples.T.contiguous() / len(samples)
        self.function = _pointwise(function)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierActivation:
        super()._apply(fn, recurse)
        self.samples, self.back = fn(self.samples), fn(self.back)
        return self

    def forward(self, x: Tensor) -> Tensor:
        fields = x.flatten(2).unflatten(1, (self.field_type.fields, self.field_type.size))
        return (self.back @ self.function(self.samples @ fields)).reshape(x.shape)

    def plain(self) -> nn.Module:
        """The same map with its constants in buffers."""
        return PlainFourierActivation(self)

    def extra_repr(self) -> str:
        return f"{_describe(self.field_type)}, angles={self.angles}, {self.function}"

    def __repr__(self) -> str:
        return f"FourierActivation({self.extra_repr()})"


class GatedActivation(nn.Module):
    """The scalar part of each field goes through a function and, through a sigmoid, scales the field's other parts.

    Weiler et al. 2018 ("3D steerable CNNs", NeurIPS), the field's own scalar being the gate. No parameters.

    Args:
        field_type: fields that have a scalar part and others besides, such as ``fourier:L``.
        function: one of :data:`FUNCTIONS`, for the scalars.

    Raises:
        ConfigError: when the fields have no scalar part.
    """

    def __init__(self, field_type: FieldType, function: str = "mish") -> None:
        super().__init__()
        scalars = [part.offset for part in _parts(field_type) if part.scalar]
        if not scalars:
            raise ConfigError(
                f"{field_type.representation} fields of {field_type.group.name} have no scalar part to open a gate; "
                "use a norm activation."
            )
        self.field_type, self.scalar = field_type, scalars[0]
        self.function = _pointwise(function)

    def forward(self, x: Tensor) -> Tensor:
        fields = x.flatten(2).unflatten(1, (self.field_type.fields, self.field_type.size))
        scalar = fields[:, :, self.scalar : self.scalar + 1]
        gate = torch.sigmoid(scalar)
        before, after = fields[:, :, : self.scalar] * gate, fields[:, :, self.scalar + 1 :] * gate
        return torch.cat([before, self.function(scalar), after], dim=2).reshape(x.shape)

    def extra_repr(self) -> str:
        return _describe(self.field_type)


class NormActivation(UnitLayer):
    """Scales every irreducible part of every field by a smooth function of its length: ``x h(|x| + b)``.

    After Worrall et al. 2017 ("Harmonic networks", CVPR), with ``h(z) = f(z) / z`` so that the map is smooth
    at the origin and a scalar part, whose own sign stands for the length, goes through ``f`` itself when ``b = 0``.

    Args:
        field_type: fields with irreducible parts (``irrep:i``, ``fourier:L``).
        function: f, "mish" or "silu": ``h`` is ``tanh(softplus(z))`` or ``sigmoid(z)``.

    Attributes:
        bias: ``[fields, parts]``, one per field and irreducible part; starts at 0.

    Raises:
        ConfigError: for permutation fields, or another function.
    """

    def __init__(self, field_type: FieldType, function: str = "mish") -> None:
        super().__init__()
        if field_type.rep.is_permutation:
            raise ConfigError(
                f"{field_type.representation} fields of {field_type.group.name} have no irreducible parts; use a "
                "pointwise activation."
            )
        if function not in ("mish", "silu"):
            raise ConfigError(f"A norm activation must be smooth at the origin, not '{function}'; use mish or silu.")
        self.field_type, self.function = field_type, function
        parts = _parts(field_type)
        # Which components make up a part, as a matrix [parts, size]: lengths are then one product. The scalars' rows
        # stand apart, because their sign is kept.
        spread = torch.zeros(len(parts), field_type.size)
        for row, part in enumerate(parts):
            spread[row, part.offset : part.offset + part.dim] = 1.0
        scalar = torch.tensor([1.0 if part.scalar else 0.0 for part in parts]).view(-1, 1)
        self.spread, self.scalar = spread.to(torch.get_default_dtype()), scalar.to(torch.get_default_dtype())
        self.bias = nn.Parameter(torch.zeros(field_type.fields, len(parts)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormActivation:
        super()._apply(fn, recurse)
        self.spread, self.scalar = fn(self.spread), fn(self.scalar)
        return self

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if self.per_unit and self.training and x.requires_grad:
            bias = bias.detach()  # the hook takes its gradient; see UnitLayer.per_unit
        fields = x.flatten(2).unflatten(1, (self.field_type.fields, self.field_type.size))
        gate, _ = _gate(_lengths(fields, self.spread, self.scalar) + bias.unsqueeze(-1), self.function)
        return (fields * (self.spread.T @ gate)).reshape(x.shape)

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :class:`UnitLayer`: the gradient of a part's bias is ``<grad, x> h'(|x| + b)``, summed over positions."""
        if not self.bias.requires_grad:
            return {}
        t = self.field_type
        with torch.no_grad():
            fields = x.flatten(2).unflatten(1, (t.fields, t.size))
            _, slope = _gate(_lengths(fields, self.spread, self.scalar) + self.bias.unsqueeze(-1), self.function)
            along = self.spread @ (fields * grad_output.flatten(2).unflatten(1, (t.fields, t.size)))
            return {self.bias: per_field_sums((along * slope).flatten(1, 2), t.fields, views)}

    def plain(self) -> nn.Module:
        """The same map with its constants in buffers."""
        return PlainNormActivation(self)

    def extra_repr(self) -> str:
        return f"{_describe(self.field_type)}, {self.function}"


class _Part(NamedTuple):
    """An irreducible part of a field: where it lies, and whether no element changes it."""

    offset: int
    dim: int
    scalar: bool


def _parts(field_type: FieldType) -> list[_Part]:
    return [
        _Part(offset, part.dim, part.dim == 1 and bool((part.matrices == 1).all()))
        for offset, part in field_type.rep.blocks
    ]


def _describe(field_type: FieldType) -> str:
    return f"{field_type.group.name}: {field_type.fields} {field_type.representation}"


def _lengths(fields: Tensor, spread: Tensor, scalar: Tensor) -> Tensor:
    """``[N, fields, size, P] -> [N, fields, parts, P]``: lengths of the parts, scalars with their sign.

    The small constant keeps the gradient of a length finite where a field vanishes, as it does on a blank background.
    """
    length = torch.sqrt(spread @ fields.square() + 1e-6)
    return scalar * (spread @ fields) + (1 - scalar) * length


def _gate(z: Tensor, function: str) -> tuple[Tensor, Tensor]:
    """``h(z)`` and its derivative."""
    if function == "silu":
        gate = torch.sigmoid(z)
        return gate, gate * (1 - gate)
    gate = torch.tanh(F.softplus(z))
    return gate, (1 - gate.square()) * torch.sigmoid(z)


class PlainFourierActivation(nn.Module):
    """:class:`FourierActivation` as constants and tensor operations, for export."""

    samples: Tensor
    back: Tensor

    def __init__(self, source: FourierActivation) -> None:
        super().__init__()
        self.fields, self.size = source.field_type.fields, source.field_type.size
        self.function = source.function
        self.register_buffer("samples", source.samples.clone())
        self.register_buffer("back", source.back.clone())

    def forward(self, x: Tensor) -> Tensor:
        fields = x.flatten(2).unflatten(1, (self.fields, self.size))
        return (self.back @ self.function(self.samples @ fields)).reshape(x.shape)


class PlainNormActivation(nn.Module):
    """:class:`NormActivation` as constants and tensor operations, for export."""

    spread: Tensor
    scalar: Tensor
    bias: Tensor

    def __init__(self, source: NormActivation) -> None:
        super().__init__()
        self.fields, self.size = source.field_type.fields, source.field_type.size
        self.function = source.function
        self.register_buffer("spread", source.spread.clone())
        self.register_buffer("scalar", source.scalar.clone())
        self.register_buffer("bias", source.bias.detach().clone().unsqueeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        fields = x.flatten(2).unflatten(1, (self.fields, self.size))
        gate, _ = _gate(_lengths(fields, self.spread, self.scalar) + self.bias, self.function)
        return (fields * (self.spread.T @ gate)).reshape(x.shape)
