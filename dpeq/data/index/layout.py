"""What a path says: patterns such as ``{patient}/*/*.nii.gz`` over the path of a file below the archive.

A placeholder stands for a part of one name in the path, ``*`` for anything within one name, ``**`` for any number of
folders. A path that fits in two ways which say different things is refused: whose image it is must not be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dpeq.data.index.spelling import composed
from dpeq.data.readers.source import Refused
from dpeq.errors import ConfigError

__all__ = ["PLACEHOLDERS", "Layout"]

PLACEHOLDERS = ("patient", "study", "series", "image", "label", "split")
_TOKEN = re.compile(r"\{(?P<name>\w*)\}|(?P<deep>\*\*)|(?P<any>\*)|(?P<text>[^{}*]+)|(?P<wrong>[{}])")


@dataclass(frozen=True)
class _Token:
    """``kind``: "text" (as it stands), "name" (one character or more), "any" (none or more), "any1", "deep"."""

    kind: str
    text: str = ""


class Layout:
    """A pattern; ``names`` are the placeholders in it.

    >>> Layout("images/{patient}.nii.gz").match("images/p7.nii.gz")
    {'patient': 'p7'}
    >>> Layout("{split}/{label}/{patient}_*.png").match("train/lesion/p7_2.png")
    {'split': 'train', 'label': 'lesion', 'patient': 'p7'}
    >>> Layout("**/{patient}.nii").match("a/b/p7.nii.gz") is None
    True
    """

    def __init__(self, pattern: str, option: str = "--layout") -> None:
        self.pattern = pattern
        self._tokens = _parse(composed(pattern), option)
        self.names = tuple(dict.fromkeys(token.text for token in self._tokens if token.kind == "name"))
        self._regex = re.compile(_regex(self._tokens), re.DOTALL)
        pieces = [_parse(piece, option) for piece in pattern.strip("/").split("/")]
        wild = [sum(token.kind in ("name", "any") for token in piece) for piece in pieces]
        deep = sum(token.kind == "deep" for token in self._tokens)
        self._certain = max(wild) <= 1 and deep <= 1

    def match(self, path: str) -> dict[str, str] | None:
        """The values of the placeholders, in composed spelling, or None for a path that does not fit.

        Raises:
            Refused: when the path fits in several ways with different values.
        """
        path = composed(path)
        found = self._regex.fullmatch(path)
        if found is None:
            return None
        if not self._certain:
            readings = _readings(self._tokens, path)
            next(readings)
            if next(readings, None) is not None:
                raise Refused("its path fits the layout in more than one way")
        return {name: found[name] for name in self.names}


def _parse(pattern: str, option: str) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    pieces = pattern.strip("/").split("/")
    for number, piece in enumerate(pieces, start=1):
        last = number == len(pieces)
        if "**" in piece:
            if piece != "**":
                raise ConfigError(f"{option} '{pattern}' has '**' beside other text; put it between two slashes.")
            tokens.append(_Token("deep"))
            if last:
                tokens.append(_Token("any1"))
            continue
        if not piece:
            raise ConfigError(f"{option} '{pattern}' has an empty name between two slashes; leave one slash out.")
        for found in _TOKEN.finditer(piece):
            if found["wrong"]:
                raise ConfigError(f"{option} '{pattern}' has a brace without its partner; write {{patient}}.")
            if found["name"] is not None:
                if found["name"] not in PLACEHOLDERS:
                    words = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
                    raise ConfigError(f"{option} '{pattern}' has the placeholder {found[0]}; use {words}.")
                tokens.append(_Token("name", found["name"]))
            else:
                tokens.append(_Token("any") if found["any"] else _Token("text", found["text"]))
        if piece == "*":
            tokens[-1] = _Token("any1")  # a name has at least one character
        if not last:
            tokens.append(_Token("text", "/"))
    return tuple(tokens)


def _regex(tokens: tuple[_Token, ...]) -> str:
    known: set[str] = set()
    parts = []
    for token in tokens:
        if token.kind == "name":
            parts.append(f"(?P={token.text})" if token.text in known else f"(?P<{token.text}>[^/]+?)")
            known.add(token.text)
        else:
            shapes = {"text": re.escape(token.text), "any": "[^/]*?", "any1": "[^/]+?", "deep": "(?:[^/]+/)*?"}
            parts.append(shapes[token.kind])
    return "".join(parts)


def _readings(tokens: tuple[_Token, ...], path: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every different set of values with which the path fits, each once."""
    seen: set[tuple[int, int, tuple[tuple[str, str], ...]]] = set()
    waiting: list[tuple[int, int, tuple[tuple[str, str], ...]]] = [(0, 0, ())]
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        at, start, values = state
        if at == len(tokens):
            if start == len(path):
                yield values
            continue
        token = tokens[at]
        if token.kind == "text":
            if path.startswith(token.text, start):
                waiting.append((at + 1, start + len(token.text), values))
            continue
        if token.kind == "deep":
            ends = [start, *(i + 1 for i in range(start, len(path)) if path[i] == "/")]
        else:
            slash = path.find("/", start)
            ends = [*range(start + (token.kind != "any"), (len(path) if slash < 0 else slash) + 1)]
            after = tokens[at + 1] if at + 1 < len(tokens) else _Token("text", "")
            if after.kind == "text":
                ends = [end for end in ends if path.startswith(after.text, end)]
        known = dict(values)
        for end in ends:
            if token.kind != "name":
                waiting.append((at + 1, end, values))
            elif known.get(token.text, path[start:end]) == path[start:end]:
                waiting.append((at + 1, end, tuple({**known, token.text: path[start:end]}.items())))
