"""Options that take several values after one name: ``--epsilon 1 2 4 inf``, as well as repeated or with commas."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["ManyValues", "split_values"]


class ManyValues(TyperCommand):
    """A verb whose repeatable options go on taking values until the next option, override or ``--``.

    ``--epsilon 1 2 privacy.steps=5`` reads as ``--epsilon 1 --epsilon 2 privacy.steps=5``: no value of such an option
    holds an equals sign, and every override does. Arguments without one are to stand before the first such option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        return super().parse_args(ctx, _repeated(args, names))


def _repeated(arguments: list[str], names: set[str]) -> list[str]:
    """``--x 1 2`` as ``--x 1 --x 2`` for the options called ``names``."""
    written: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        written.append(word)
        if word == "--":
            return written + rest
        name, equals, _ = word.partition("=")
        if name not in names:
            continue
        if not equals and rest:
            written.append(rest.pop(0))  # its value, whatever it looks like, as for every option
        while rest and not rest[0].startswith("-") and "=" not in rest[0]:
            written += [name, rest.pop(0)]
    return written


def split_values(given: list[str] | None) -> list[str]:
    """All values, first to last, also of those that were written with commas: ``["1,2", "4"]`` as 1, 2 and 4."""
    return [value.strip() for one in given or [] for value in one.split(",") if value.strip()]
