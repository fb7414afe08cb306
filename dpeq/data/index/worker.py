"""The process that opens files of unknown making: it may crash or hang, and nobody else does.

It talks in lines of JSON over its standard input and output, one answer for each item, in order: whoever asks knows by
the first answer that is missing which item ended it. What C libraries print is thrown away, for it can quote a header.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any, TextIO

from dpeq.data.index.check import check
from dpeq.data.readers.source import Header, Refused, Source

__all__ = ["main"]

_AT_ONCE = 32  # files and images of one item that get no more time than a single one


def main(reader: str, memory: int, seconds: int) -> None:
    """Answers until its input ends.

    Args:
        reader: import path of a module with ``examine`` and ``read`` as in :mod:`dpeq.data.readers.read`.
        memory: limit of its address space in bytes.
        seconds: that a file may take; SIGALRM ends the process then, within a C library too.
    """
    questions, answers = _take_streams()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the image
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if most == resource.RLIM_INFINITY else min(memory, most), most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        module = importlib.import_module(reader)
    except ImportError as error:
        _say(answers, {"failed": str(error)})
        return
    _say(answers, {"ready": True})
    for line in questions:
        question = json.loads(line)
        for item in question["items"]:
            signal.alarm(_allowed(seconds, item))
            try:
                answer = _answer(module, Path(question["root"]), question["verb"], item)
            except Refused as refused:
                answer = {"reason": refused.reason, "detail": refused.detail}
            signal.alarm(0)
            _say(answers, answer)


def _answer(module: Any, root: Path, verb: str, item: Any) -> dict[str, Any]:
    if verb == "examine":
        header: Header = module.examine(root / item)
        return {"header": header.to_json()}
    return check(module.read, root, [Source.from_dict(values) for values in item]).to_json()


def _allowed(seconds: int, item: Any) -> int:
    if isinstance(item, str):
        return seconds
    return seconds * (1 + (len(item) + sum(len(source["files"]) for source in item)) // _AT_ONCE)


def _take_streams() -> tuple[TextIO, TextIO]:
    """Standard input and output for itself alone; everyone else in this process gets the null device."""
    questions = os.fdopen(os.dup(0), "r", encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    return questions, answers


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
