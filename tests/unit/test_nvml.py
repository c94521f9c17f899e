"""How a GPU is doing, asked of a stand-in for the two C libraries: there is no GPU here, and numbers are held against NVIDIA's binding."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from edgeopt.runner import Port, nvml, serve
from edgeopt.runner.null import NullSession

HERE, OTHER = b"0000:65:00.0", b"0000:17:00.0"


class Libraries:
    """libcuda, whose first GPU is the one at HERE, and NVML, which lists OTHER first; `told` are NVML's numbers by function."""

    def __init__(self, **told: Any) -> None:
        self.told, self.counters, self.cuda_refuses = told, {74: 5_000, 75: 0, 77: 7}, 0

    def __getattr__(self, name: str) -> Any:
        if name not in self.told:
            raise AttributeError(name)

        def function(gpu: Any, *given: Any) -> int:
            assert gpu.value == 2, "the handle of the GPU at HERE"
            value = self.told[name][given[0]] if isinstance(self.told[name], dict) else self.told[name]
            given[-1]._obj.value = value
            return 0

        return function

    def cuInit(self, flags: int) -> int:
        return self.cuda_refuses

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 40 + ordinal
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: Any) -> int:
        assert device.value == 40
        text.value = HERE
        return 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, address: bytes, handle: Any) -> int:
        handle._obj.value = [OTHER, HERE].index(address) + 1
        return 0

    def nvmlDeviceGetFieldValues(self, gpu: Any, count: int, fields: Any) -> int:
        assert count == len(fields)
        for field in fields:
            field.answer = 0 if field.number in self.counters else 3  # not supported
            field.value = self.counters.get(field.number, 0)
        return 0


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    nvml._library.cache_clear()
    nvml._gpu.cache_clear()


def loaded(monkeypatch: pytest.MonkeyPatch, libraries: Any) -> Any:
    forget()
    monkeypatch.setattr(ctypes, "CDLL", libraries if callable(libraries) else lambda name: libraries)
    return libraries


def absent(name: str) -> None:
    raise OSError(name)


NOTHING = {"mhz": None, "celsius": None, "slowed": None, "at_power_limit": None, "held_ns": dict.fromkeys(nvml.COUNTERS)}


def test_it_is_the_gpu_that_cuda_computes_on_that_is_read(monkeypatch):
    libraries = loaded(monkeypatch, Libraries())
    libraries.told = {"nvmlDeviceGetClockInfo": {0: 1980, 2: 2619}, "nvmlDeviceGetTemperature": 61}
    told = nvml.reading()
    assert told == {**NOTHING, "mhz": 1980, "celsius": 61, "held_ns": {"power": 5_000, "heat": 0, "board": 7, "reliability": None}}


@pytest.mark.parametrize(
    ("bits", "slowed", "at_power_limit", "names"),
    [
        (0x1, False, False, []),
        (0x2, False, False, []),
        (0x4, False, True, ["power limit"]),
        (0x8, True, False, ["hardware slowdown"]),
        (0x20 | 0x4, True, True, ["power limit", "heat"]),
        (0x48, True, False, ["hardware slowdown", "heat, by the hardware"]),
        (0x80, True, False, ["power brake"]),
        (0x110, False, False, ["sync boost", "display clock"]),
    ],
)
@pytest.mark.parametrize("name", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"])
def test_the_limit_of_power_is_told_apart_from_heat_and_slowdowns(name, bits, slowed, at_power_limit, names, monkeypatch):
    loaded(monkeypatch, Libraries(**{name: bits}))
    told = nvml.reading()
    assert (told["slowed"], told["at_power_limit"]) == (slowed, at_power_limit)
    assert nvml.conditions()["throttled_by"] == names


def test_conditions_are_what_this_gpu_tells_of_them(monkeypatch):
    loaded(monkeypatch, Libraries(nvmlDeviceGetClockInfo={0: 1980, 2: 2619}, nvmlDeviceGetPowerUsage=412_500))
    told = nvml.conditions()
    assert (told["graphics_mhz"], told["memory_mhz"], told["power_w"]) == (1980, 2619, 412.5)
    assert {name for name, value in told.items() if value is None} == {
        *("driver", "most_graphics_mhz", "power_limit_w", "performance_state", "throttled_by")
    }


def test_where_a_library_or_a_gpu_lacks_nothing_is_told_and_nothing_fails(monkeypatch):
    for libraries in (absent, Libraries(), lambda name: object()):
        if isinstance(libraries, Libraries):
            libraries.cuda_refuses = 100  # no device
        loaded(monkeypatch, libraries)
        assert nvml.reading() == NOTHING and nvml.conditions() == {} and nvml.driver() == ""


def test_a_child_reads_its_gpu_after_each_timing_and_only_there():
    child, ports = serve.Child(), {"inputs": [["x", "float32", ["N"]]], "outputs": [["y", "float32", ["N"]]]}
    child._session = NullSession(ports, 1)
    assert isinstance(child._session.inputs[0], Port)
    child._sets = [serve._zeros(child._session.inputs)]
    assert child.answer({"do": "time", "runs": 2}, {})[0] == {"ok": True, "gpu": None}
    assert "conditions" not in child.answer({"do": "facts"}, {})[0]
    child._session.on_gpu = True  # type: ignore[attr-defined]
    told = child.answer({"do": "time", "runs": 2}, {})[0]["gpu"]
    assert set(told) == set(NOTHING)
    assert isinstance(child.answer({"do": "facts"}, {})[0]["conditions"], dict)


def test_the_numbers_are_those_of_nvidia_s_own_binding():
    theirs = pytest.importorskip("pynvml")
    assert nvml.COUNTERS == {
        "power": theirs.NVML_FI_DEV_PERF_POLICY_POWER,
        "heat": theirs.NVML_FI_DEV_PERF_POLICY_THERMAL,
        "board": theirs.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT,
        "reliability": theirs.NVML_FI_DEV_PERF_POLICY_RELIABILITY,
    }
    bits = {name: getattr(theirs, f"nvmlClocksEventReason{name}") for name in ("GpuIdle", "ApplicationsClocksSetting", "All")}
    assert sum(nvml.REASONS) == bits["All"] & ~bits["GpuIdle"] & ~bits["ApplicationsClocksSetting"]
    assert theirs.nvmlClocksEventReasonSwPowerCap == nvml._AT_POWER_LIMIT
    slow = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert sum(getattr(theirs, f"nvmlClocksEventReason{name}") for name in slow) == nvml._SLOWED
    assert nvml._CLOCKS == {"graphics": theirs.NVML_CLOCK_GRAPHICS, "memory": theirs.NVML_CLOCK_MEM}
    assert nvml._GPU_DIE == theirs.NVML_TEMPERATURE_GPU
    field = theirs.c_nvmlFieldValue_t
    assert ctypes.sizeof(nvml.Field) == ctypes.sizeof(field)
    names = {"number": "fieldId", "scope": "scopeId", "latency_us": "latencyUsec", "kind": "valueType", "answer": "nvmlReturn"}
    for name, *_ in nvml.Field._fields_:
        assert getattr(nvml.Field, name).offset == getattr(field, names.get(name, name)).offset
