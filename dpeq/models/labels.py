"""What a network is called where several stand side by side: in names of runs, tables and curves."""

from __future__ import annotations

from dpeq.models.matching import KINDS

__all__ = ["TWIN", "label_of"]

TWIN = "-twin"


def label_of(name: str, group: str | None = None) -> str:
    """The label of a model section: its name, with the group where one was chosen; twins are called twins.

    >>> label_of("eqresnet9", "D4"), label_of("cnn"), label_of("eqnet-s")
    ('eqresnet9-d4', 'cnn-twin', 'eqnet-s')
    """
    if name in KINDS:
        return name + TWIN
    return f"{name}-{group.lower()}" if group else name
