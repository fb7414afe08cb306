"""The conventional twin of an equivariant network: the same blocks with the symmetry taken away."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn.fields import FieldType, hidden_representation

__all__ = ["cnn_twin"]

Spec = TypeVar("Spec")


def cnn_twin(spec: Spec) -> Spec:
    """The same network with the trivial group and as many channels in every stage.

    Without the symmetry every filter is free, so this twin has about |G| times the parameters;
    :func:`dpeq.models.matching.match` makes it as narrow as a fair comparison needs.

    Args:
        spec: of an equivariant architecture: a dataclass with ``group``, ``restriction`` and three ``fields``, the last
            of which belongs to the restricted group.

    Raises:
        ConfigError: for a network that has no symmetry to take away.
    """
    names = {f.name for f in fields(spec)} if is_dataclass(spec) else set()
    if not {"group", "restriction", "fields"} <= names:
        kind = getattr(spec, "architecture", type(spec).__name__)
        raise ConfigError(f"A {kind} has no symmetry to take away; ask for the CNN twin of an equivariant network.")
    equivariant: Any = spec
    whole = group(equivariant.group)
    kept = whole.subgroup(equivariant.restriction)
    types = [
        FieldType(g, hidden_representation(g), n) for g, n in zip((whole, whole, kept), equivariant.fields, strict=True)
    ]
    name = "trivial" if whole.dim == 2 else "trivial-3d"
    return replace(equivariant, group=name, restriction="none", fields=tuple(t.channels for t in types))
