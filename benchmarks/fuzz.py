"""Damages small whole files of every format and transfer syntax, reads them, and counts what comes out.

    python -m benchmarks.fuzz --seconds 300 --json

Only two things may: a header (and voxels of the promised shape, all finite), or a refusal with a fixed reason. Anything
else is a finding: another exception, a process that dies, a file that takes more than ``--patience`` seconds, memory
beyond ``--memory`` MiB. Files are read in child processes, so that a decoder written in C can take none but its own
down; each file follows from ``--seed`` and its number, so a finding can be made again with ``--only NUMBER``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzz_seeds import damaged, seeds
from dpeq.data.readers.dicom_series import assemble
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Refused, Source

MOST_PARTS = 4
START = 60.0  # seconds that a process may take to start
READER = (sys.executable, "-m", "benchmarks.fuzz")


def judge(path: Path) -> str:
    """ "accepted", or the reason of the refusal; with ``!`` before it for what should not be.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     judge(Path(file.name))
    'an empty file'
    """
    try:
        header = examine(path)
        for source in _sources(path, header):
            voxels = read(path.parent, source).voxels
            if header.format != "dicom" and voxels.shape != header.shape:
                return f"!{voxels.shape} for {header.shape}"
    except Refused as refused:
        # "cannot be decoded" is right for a decoder's error, whose kind is told apart here by its first word.
        return refused.reason + (f" ({refused.detail.split(':')[0]})" if refused.reason == "cannot be decoded" else "")
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
    return "accepted"


def _sources(path: Path, header: Header) -> Sequence[Source]:
    if header.format != "dicom":
        return [Source(header.format, (path.name,), part) for part in range(len(header.members[:MOST_PARTS]))]
    images, refused = assemble([(path.name, header)])
    if refused:
        raise refused[0][1]
    return images


def case(seed: int, number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of what was damaged, and the damaged file."""
    name = list(whole)[number % len(whole)]
    return name, damaged(whole[name], list(whole.values()), random.Random(f"{seed} {number}"))


def child(seed: int, first: int, folder: Path, memory: int) -> None:
    """Judges one case after the other, one line of JSON each, until nobody listens."""
    whole = seeds()
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # what decoders print
    os.dup2(nothing, 2)
    path = folder / "case"
    for number in range(first, sys.maxsize):
        name, content = case(seed, number, whole)
        path.write_bytes(content)
        start = time.perf_counter()
        outcome = judge(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps([number, name, outcome, time.perf_counter() - start, peak]), file=answers, flush=True)


def answers_of(process: subprocess.Popen[bytes], patience: float, until: float) -> Iterator[list[Any]]:
    """Lines of a child; ends when it ends, is silent for too long, or the time is over."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest, silence = b"", START
        while selector.select(max(0, min(silence, until - time.monotonic()))):
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:  # it lets go of its output before it has ended: how it ended is known only then
                process.wait(START)
                return
            silence = patience
            *lines, rest = (rest + block).split(b"\n")
            yield from map(json.loads, lines)
            if time.monotonic() >= until:
                return


def run(seconds: float, seed: int, patience: float, memory: int, reader: Sequence[str] = READER) -> dict[str, Any]:
    """Fuzzes for ``seconds``; ``memory`` in bytes above what a process has at its start, ``reader`` what starts one."""
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    slowest, peak, number = 0.0, 0, 0
    until = time.monotonic() + seconds
    names = list(seeds())
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            command = [*reader, "--seed", str(seed), "--memory", str(memory >> 20)]
            command += ["--child", str(number), "--folder", folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                for number, name, outcome, took, most in answers_of(process, patience, until):
                    slowest, peak = max(slowest, took), max(peak, most)
                    outcomes["unexpected" if outcome.startswith("!") else outcome] += 1
                    if outcome.startswith("!"):
                        findings.append({"number": number, "file": name, "what": outcome[1:]})
                    number += 1
                over = time.monotonic() >= until
                ended = process.poll()
                process.kill()
            if over:
                break
            what = f"took more than {patience:g} s" if ended is None else f"the process ended with {ended}"
            findings.append({"number": number, "file": names[number % len(names)], "what": what})
            outcomes["unexpected"] += 1
            number += 1
    total = sum(outcomes.values())
    return {
        "files": total,
        "seconds": seconds,
        "accepted": outcomes["accepted"],
        "refused": total - outcomes["accepted"] - outcomes["unexpected"],
        "unexpected": outcomes["unexpected"],
        "slowest_seconds": round(slowest, 3),
        "peak_mib": peak,
        "reasons": dict(outcomes.most_common()),
        "findings": findings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=10, help="seconds that one file may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that one process may grow by")
    parser.add_argument("--only", type=int, help="judge this one file, in this process, and keep it in --folder")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child is not None:
        child(options.seed, options.child, options.folder, options.memory << 20)
        return
    if options.only is not None:
        name, content = case(options.seed, options.only, seeds())
        path = options.folder / f"fuzz-{options.only}"
        path.write_bytes(content)
        print(name, path, judge(path), sep="\n")
        return
    result = run(options.seconds, options.seed, options.patience, options.memory << 20)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for reason, count in result.pop("reasons").items():
        print(f"{count:8} {reason}")
    print(result)


if __name__ == "__main__":
    main()
