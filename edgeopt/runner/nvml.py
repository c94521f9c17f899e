"""NVML, which tells how a GPU is doing, by ctypes: no package is needed, and where it is not, nothing is told and nothing fails.

NVML counts all GPUs of the machine; CUDA counts those that CUDA_VISIBLE_DEVICES leaves, in the order of CUDA_DEVICE_ORDER.
The one that computes is CUDA's first, and both know it by its PCI address (of a MIG slice: that of the GPU around it).
Numbers are those of nvml.h; a test holds them against NVIDIA's own binding. Nothing here ran on a GPU yet.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_CLOCKS = {"graphics": 0, "memory": 2}
_GPU_DIE = 0  # the sensor of nvmlDeviceGetTemperature
# Why a clock is lower than it could be, bit by bit. Idle (1) and clocks that the user chose (2) are no reasons.
REASONS = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat",
    0x40: "heat, by the hardware",
    0x80: "power brake",
    0x100: "display clock",
}
_AT_POWER_LIMIT, _SLOWED = 0x4, 0x8 | 0x20 | 0x40 | 0x80
# Fields that count the nanoseconds for which something held the clocks down. The driver moves them on about every 0.1 s. Those of
# hardware slowdowns are left out: their numbers changed from one driver to the next.
COUNTERS = {"power": 74, "heat": 75, "board": 77, "reliability": 79}


class Field(ctypes.Structure):
    """nvmlFieldValue_t. Its value is a union of 8 bytes, read here as an unsigned integer."""

    _fields_ = (
        ("number", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("answer", ctypes.c_uint),
        ("value", ctypes.c_ulonglong),
    )


def reading() -> dict[str, Any]:
    """The GPU that computes, now: clock in MHz, temperature in °C, what holds the clock down; null what it does not tell.

    `slowed`: by heat, or by hardware that protects itself; `at_power_limit`: by the power that it may draw; `held_ns`: for
    how many nanoseconds so far, by COUNTERS.
    """
    gpu, reasons = _gpu(), _reasons()
    return {
        "mhz": _number("nvmlDeviceGetClockInfo", gpu, _CLOCKS["graphics"]),
        "celsius": _number("nvmlDeviceGetTemperature", gpu, _GPU_DIE),
        "slowed": None if reasons is None else bool(reasons & _SLOWED),
        "at_power_limit": None if reasons is None else bool(reasons & _AT_POWER_LIMIT),
        "held_ns": _counters(),
    }


def conditions() -> dict[str, Any]:
    """Driver, clocks, power and what holds the clocks of the GPU that computes; empty where NVML knows it not."""
    gpu, reasons = _gpu(), _reasons()
    if gpu is None:
        return {}
    milliwatts = [_number(f"nvmlDeviceGet{name}", gpu) for name in ("PowerUsage", "PowerManagementLimit")]
    power, limit = (None if one is None else one / 1000 for one in milliwatts)
    return {
        "driver": driver() or None,
        "graphics_mhz": _number("nvmlDeviceGetClockInfo", gpu, _CLOCKS["graphics"]),
        "memory_mhz": _number("nvmlDeviceGetClockInfo", gpu, _CLOCKS["memory"]),
        "most_graphics_mhz": _number("nvmlDeviceGetMaxClockInfo", gpu, _CLOCKS["graphics"]),
        "power_w": power,
        "power_limit_w": limit,
        "performance_state": _number("nvmlDeviceGetPerformanceState", gpu),
        "throttled_by": None if reasons is None else [name for bit, name in REASONS.items() if reasons & bit],
    }


def driver() -> str:
    """The driver's version, as 580.65.06; empty where NVML tells none."""
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    return text.value.decode(errors="replace") if _answers("nvmlSystemGetDriverVersion", text, 80) else ""


@cache
def _library() -> Any:
    """NVML, ready to be asked, or None. Opened on first use: a process that forks must not have it open."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        return nvml if nvml.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def _answers(name: str, *given: Any) -> bool:
    """Whether a function of NVML answers, in what it was given a reference to. One that this NVML lacks does not."""
    function = getattr(_library(), name, None)
    return function is not None and function(*given) == 0


def _number(name: str, gpu: Any, *given: Any, kind: Any = ctypes.c_uint) -> int | None:
    number = kind()
    return number.value if gpu is not None and _answers(name, gpu, *given, ctypes.byref(number)) else None


@cache
def _gpu() -> Any:
    """NVML's handle of the GPU that computes, or None."""
    handle = ctypes.c_void_p()
    address = _address()
    return handle if address and _answers("nvmlDeviceGetHandleByPciBusId_v2", address, ctypes.byref(handle)) else None


def _address() -> bytes:
    """The PCI address of CUDA's first GPU, as 0000:65:00.0; empty where CUDA has none."""
    text, first = ctypes.create_string_buffer(32), ctypes.c_int()
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        found = not (cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(first), 0) or cuda.cuDeviceGetPCIBusId(text, 32, first))
    except (OSError, AttributeError):
        return b""
    return text.value if found else b""


def _reasons() -> int | None:
    """The bits of REASONS that hold now; drivers before 535 know the function by its older name."""
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    told = (_number(name, _gpu(), kind=ctypes.c_ulonglong) for name in names)
    return next((bits for bits in told if bits is not None), None)


def _counters() -> dict[str, int | None]:
    fields = (Field * len(COUNTERS))(*(Field(number=number) for number in COUNTERS.values()))
    gpu = _gpu()
    told = gpu is not None and _answers("nvmlDeviceGetFieldValues", gpu, len(COUNTERS), fields)
    return {name: field.value if told and field.answer == 0 else None for name, field in zip(COUNTERS, fields, strict=True)}
