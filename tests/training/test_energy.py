"""Energy from made-up counters: their sum, where they wrap around, and what is said where they cannot be read."""

import time
from pathlib import Path

import pytest
import torch

from dpeq.training import energy
from dpeq.training.energy import WATTS_PER_CORE, EnergyMeter

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RANGE = 1_000_000_000_000  # microjoules: a package that draws 1 kW passes it in 1000 s


class Machine:
    """Zones of files, a clock that stands still, a GPU that draws what it is told to."""

    def __init__(self, folder: Path, counters: dict[str, tuple[str, int]]) -> None:
        self.zones, self.now, self.watts = folder, 0.0, 0.0
        for zone, (name, value) in counters.items():
            (folder / zone).mkdir()
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
            self.set(zone, value)

    def set(self, zone: str, value: int) -> None:
        (self.zones / zone / "energy_uj").write_text(f"{value}\n")

    def meter(self, device: torch.device = CPU) -> EnergyMeter:
        return EnergyMeter(device, zones=self.zones, clock=lambda: self.now, power=lambda _: self.watts)


@pytest.fixture
def machine(tmp_path) -> Machine:
    """Two packages, a part of one, and the platform that holds both."""
    return Machine(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", 5),
            "intel-rapl:0:0": ("core", 7),
            "intel-rapl:1": ("package-1", RANGE - 1_000_000),
            "intel-rapl:2": ("psys", 0),
        },
    )


def test_packages_are_added_parts_are_not_and_a_counter_wraps_around(machine):
    meter = machine.meter()
    machine.now = 60.0
    machine.set("intel-rapl:0", 5 + 3_600_000_000)  # 1 Wh
    machine.set("intel-rapl:0:0", 3_000_000_000)
    machine.set("intel-rapl:1", 3_598_999_999)  # 1 J to the end, one microjoule around, 3599 J: 1 Wh
    machine.set("intel-rapl:2", 9_000_000_000)
    found = meter.result()
    assert found["kwh"] == pytest.approx(0.002)
    assert found["basis"].startswith("Measured by the energy counters of the processor packages")


def test_readings_in_between_see_every_turn_of_the_counter(machine):
    meter = machine.meter()
    for reading in range(1, 7):
        machine.now += 100.0
        machine.set("intel-rapl:0", (5 + reading * RANGE // 2) % (RANGE + 1))
        meter.sample()
    assert meter.result()["kwh"] == pytest.approx(3 * RANGE * 1e-6 / 3.6e6, rel=0.01)


def test_too_long_without_a_reading_is_no_measurement(machine):
    meter = machine.meter()
    machine.now += 1001.0
    meter.sample()
    assert meter.result()["basis"].startswith("An estimate")


def test_a_counter_that_goes_away_is_no_measurement(machine):
    meter = machine.meter()
    (machine.zones / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.result()["basis"].startswith("An estimate")


def test_a_moment_after_a_reading_there_is_no_other(machine):
    meter = machine.meter()
    machine.now = 1.0
    (machine.zones / "intel-rapl:0" / "energy_uj").write_text("gone")
    meter.sample()
    machine.set("intel-rapl:0", 3_600_000_005)
    assert meter.result()["basis"].startswith("Measured")


def test_without_counters_processor_seconds_are_counted_and_the_assumption_is_told(tmp_path, monkeypatch):
    spent = iter([100.0, 100.0 + 7234.0])
    monkeypatch.setattr(energy, "_cpu_seconds", lambda: next(spent))
    found = EnergyMeter(CPU, zones=tmp_path / "none").result(resumed=True, processes=4)
    assert found == {
        "kwh": pytest.approx(7234 * WATTS_PER_CORE / 3.6e6, rel=0.05),
        "basis": "An estimate: 7200 seconds of processor time at 10 W for each busy core, of the first of 4 processes, "
        "of the last start of a run that was resumed.",
    }
    assert float(f"{found['kwh']:.2g}") == found["kwh"]


def test_busy_seconds_count_and_idle_ones_do_not():
    before, began = energy._cpu_seconds(), time.process_time()
    while time.process_time() - began < 0.2:
        pass
    used = energy._cpu_seconds() - before
    time.sleep(0.2)
    assert 0.15 < used < 0.5
    assert energy._cpu_seconds() - before < used + 0.15


def test_a_gpu_adds_its_power_over_time(machine):
    machine.watts = 100.0
    meter = machine.meter(GPU)
    machine.now, machine.watts = 60.0, 300.0
    meter.sample()
    machine.now = 120.0
    found = meter.result()  # a minute at 200 W on average, another at 300 W
    assert found["kwh"] == pytest.approx((60 * 200 + 60 * 300) / 3.6e6, rel=0.01)
    assert found["basis"].endswith("readings of the GPU's power draw.")


def test_a_gpu_without_a_reading_has_no_energy(machine, monkeypatch):
    machine.watts = None
    assert machine.meter(GPU).result() is None

    def broken(device):
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "power_draw", broken)
    assert EnergyMeter(GPU, zones=machine.zones).result() is None
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    assert energy._gpu_watts(GPU) == 250.0
