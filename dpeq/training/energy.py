"""The energy of a run: measured where the machine lets one, otherwise estimated from processor time.

Measured: Intel's (and AMD's) RAPL counters of the processor packages, which count whatever runs on them, and the power
draw of an NVIDIA GPU. The counters are often closed to all but root. What neither sees - memory, disks, power supply,
cooling - is not in the figure.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["WATTS_PER_CORE", "EnergyMeter"]

WATTS_PER_CORE = 10.0
"""Assumed for a busy core; servers and desktops draw about 5 to 15 W for each."""

_ZONES = Path("/sys/class/powercap")
_EVERY = 10.0  # seconds between two readings
_MOST_WATTS = 1000.0  # of one package: how soon its counter may have wrapped around
_JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Counts from its construction; :meth:`sample` is called often, for counters wrap around and power changes.

    Args:
        device: a GPU is read beside the processor.
        zones: folder of the RAPL zones.
        clock: seconds.
        power: of the GPU, in watts; None where it cannot be read.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        zones: Path = _ZONES,
        clock: Callable[[], float] = time.monotonic,
        power: Callable[[torch.device], float | None] | None = None,
    ) -> None:
        self._device, self._clock, self._power = device, clock, power or _gpu_watts
        self._packages = [package for package in map(_Package.open, sorted(zones.glob("intel-rapl:*"))) if package]
        self._lost = False  # a counter may have wrapped unseen, or is gone
        self._cpu_seconds = _cpu_seconds()
        self._at = clock()
        self._gpu_joules = 0.0
        self._watts = self._gpu()

    def sample(self) -> None:
        """Reads counters and power, unless they were read a moment ago."""
        if self._clock() - self._at >= _EVERY:
            self._read()

    def result(self, *, resumed: bool = False, processes: int = 1) -> dict[str, Any] | None:
        """``{"kwh", "basis"}``; None on a GPU whose power cannot be read, for the processor's part would mislead.

        Args:
            resumed: whether processes before this one did part of the work.
            processes: how many share the run; this one counts itself alone.
        """
        self._read()
        if self._device.type == "cuda" and self._watts is None:
            return None
        if self._packages and not self._lost:
            joules = sum(package.joules for package in self._packages)
            basis = "measured by the energy counters of the processor packages (RAPL), with all else that ran on them"
        else:
            seconds = _cpu_seconds() - self._cpu_seconds
            joules = seconds * WATTS_PER_CORE
            basis = (
                f"an estimate: {_two_digits(seconds):g} seconds of processor time at {WATTS_PER_CORE:g} W for each "
                "busy core"
            )
        if self._device.type == "cuda":
            joules += self._gpu_joules
            basis += ", and readings of the GPU's power draw"
        if processes > 1:
            basis += f", of the first of {processes} processes"
        if resumed:
            basis += ", of the last start of a run that was resumed"
        return {"kwh": _two_digits(joules / _JOULES_PER_KWH), "basis": f"{basis[0].upper()}{basis[1:]}."}

    def _read(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        for package in self._packages:
            self._lost |= not package.advance(passed)
        before, self._watts = self._watts, self._gpu()
        if before is not None and self._watts is not None:
            self._gpu_joules += 0.5 * (before + self._watts) * passed

    def _gpu(self) -> float | None:
        return self._power(self._device) if self._device.type == "cuda" else None


class _Package:
    """One processor package: its counter in microjoules, which begins anew at 0 behind ``span``."""

    def __init__(self, counter: Path, span: float, last: float) -> None:
        self._counter, self._span, self._last = counter, span, last
        self.joules = 0.0

    @classmethod
    def open(cls, zone: Path) -> _Package | None:
        """None for what is no package (core, dram and psys zones are parts of others) or may not be read."""
        try:
            if not (zone / "name").read_text(encoding="ascii").startswith("package"):
                return None
            span = _number(zone / "max_energy_range_uj")
            return cls(zone / "energy_uj", span, _number(zone / "energy_uj"))
        except (OSError, ValueError):
            return None

    def advance(self, seconds: float) -> bool:
        """Adds what was used since the last reading; False when that cannot be known."""
        try:
            now = _number(self._counter)
        except (OSError, ValueError):
            return False
        self.joules += ((now - self._last) % (self._span + 1)) * 1e-6
        self._last = now
        return seconds * _MOST_WATTS < self._span * 1e-6


def _two_digits(value: float) -> float:
    """How long training took to the last digit tells how many units were sampled."""
    return float(f"{value:.2g}")


def _number(path: Path) -> float:
    return float(int(path.read_text(encoding="ascii")))


def _cpu_seconds() -> float:
    """User and system time of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _gpu_watts(device: torch.device) -> float | None:
    """None where NVIDIA's management library is missing, or says nothing of this GPU."""
    try:
        return torch.cuda.power_draw(device) / 1000.0
    except Exception:  # no library, no driver, no sensor: each has a class of its own, not always there to be named
        return None
