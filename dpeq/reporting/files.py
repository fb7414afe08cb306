"""Files of a report: each whole or not at all, and held to the schema that travels with the package."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from dpeq.errors import DataError
from dpeq.resources import asset

__all__ = ["as_text", "check_schema", "remove_pdf", "write_whole"]


def write_whole(path: Path, data: bytes, *, owner_alone: bool = False) -> None:
    """Writes beside ``path``, syncs, then renames: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            if owner_alone:
                os.fchmod(stream.fileno(), 0o600)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_pdf(page: Path) -> None:
    """Removes a PDF of the page before: it shows what that one said, figures among them that were since left out."""
    page.with_suffix(".pdf").unlink(missing_ok=True)


def as_text(body: dict[str, Any]) -> str:
    """A report or a summary as its file has it."""
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check_schema(body: Any, kind: str) -> None:
    """Holds ``body`` to ``privacy_reports/<kind>.schema.json``; ``kind`` is "report" or "summary".

    Raises :class:`DataError`, naming the first place that breaks it.
    """
    errors = sorted(_validator(kind).iter_errors(body), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        place = "/".join(map(str, errors[0].absolute_path)) or "top level"
        raise DataError(
            f"The {kind} breaks its schema at {place}: {errors[0].message[:300]}; build it again with dpeq."
        )


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(asset("privacy_reports", f"{kind}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
