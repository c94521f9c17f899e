"""What this machine is: cores the quota allows, CPU, memory, system; told in every session."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
from functools import cache
from pathlib import Path
from typing import Any

from edgeopt.core import digest

ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")

# Without one of these a CPU computes bfloat16 slower than f32, if at all.
BF16_FLAGS = ("avx512_bf16", "amx_bf16")


# Where a driver without NVML shows itself: its own folder, or on Jetson the release of L4T.
NVIDIA, TEGRA = Path("/proc/driver/nvidia"), Path("/etc/nv_tegra_release")


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@cache
def threads() -> int:
    """How many cores the process may use: affinity, cut to the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in _text("/proc/self/cgroup").splitlines() or ["0::/"]:
        group = line.split(":", 2)[-1].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            quota = _text(str(folder / "cpu.max")).split()
            if len(quota) == 2 and quota[0] != "max":
                cores = min(cores, max(1, int(int(quota[0]) / int(quota[1]) + 0.999)))
    old, period = _text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if old and period and int(old) > 0:
        cores = min(cores, max(1, int(int(old) / int(period) + 0.999)))
    return cores


def memory_bytes() -> int:
    """Memory the process may use: physical, cut to the cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _text("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def cache_bytes() -> int:
    """The largest cache of the first core; 32 MiB where the system does not tell."""
    sizes = [_text(str(path)) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in units), default=32 << 20)


@cache
def fingerprint() -> dict[str, Any]:
    """The facts that must be equal for two timings to be comparable, as plain JSON."""
    info: dict[str, str] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    flags = (info.get("flags") or info.get("Features") or "").split()
    facts: dict[str, Any] = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_family": "/".join(info.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "isa": [flag for flag in ISA if flag in flags],
        "arch": platform.machine(),
        "cores_visible": os.cpu_count() or 1,
        "cores_allowed": threads(),
        "memory_mb": round(memory_bytes() / 1e6),
        "system": platform.system(),
        "kernel": platform.release(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "container": container(),
        "virtual": "hypervisor" in flags,
    }
    facts["id"] = digest.of_value(facts)
    return facts


def lacks_vnni() -> str:
    """Why 8-bit weights overflow on this machine, or an empty string: x86 without VNNI adds up products of U8 and S8 in 16 bits."""
    facts = fingerprint()
    lacking = facts["arch"] == "x86_64" and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(facts["isa"])
    return "this CPU has no VNNI" if lacking else ""


def with_gpus() -> dict[str, Any]:
    """The fingerprint with the GPUs in it, for timings that are theirs."""
    facts = {**{name: value for name, value in fingerprint().items() if name != "id"}, **gpus()}
    return {**facts, "id": digest.of_value(facts)}


@cache
def gpus() -> dict[str, Any]:
    """The NVIDIA GPUs that a process may use and their driver, as NVML tells them, else the kernel; no CUDA is started."""
    names, driver = _nvml()
    for path in [] if names else sorted(NVIDIA.glob("gpus/*/information")):
        names += [line.partition(":")[2].strip() for line in _text(str(path)).splitlines() if line.startswith("Model:")]
    if not names and TEGRA.is_file():
        names = [_text("/proc/device-tree/model").strip("\0")]
    driver = driver or (_text(str(NVIDIA / "version")) or _text(str(TEGRA))).partition("\n")[0]
    chosen = {"gpus_visible": "CUDA_VISIBLE_DEVICES", "gpu_order": "CUDA_DEVICE_ORDER"}
    return {"gpus": names, "gpu_driver": driver or None, **{name: os.environ.get(variable) for name, variable in chosen.items()}}


def _nvml() -> tuple[list[str], str]:
    """Names of the GPUs and the driver's version; nothing where NVML is not."""
    names, text, count, handle = list[str](), ctypes.create_string_buffer(96), ctypes.c_uint(), ctypes.c_void_p()
    try:
        nvml = ctypes.CDLL("nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return [], ""
        for index in range(count.value):
            if not nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) and not nvml.nvmlDeviceGetName(handle, text, 96):
                names.append(text.value.decode(errors="replace"))
        told = not nvml.nvmlSystemGetDriverVersion(text, 96)
        return names, text.value.decode(errors="replace") if told else ""
    except (OSError, AttributeError):
        return names, ""


def container() -> str | None:
    """What kind of container this runs in, as far as the system shows it; a container's quota and neighbours are part of a timing."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    told = _text("/run/systemd/container") or os.environ.get("container", "")  # noqa: SIM112 (systemd writes it so)
    if told:
        return told
    groups = _text("/proc/1/cgroup") + _text("/proc/self/cgroup")
    return next((kind for kind in ("kubepods", "docker", "containerd", "lxc", "libpod") if kind in groups), None)


def load() -> float | None:
    """The one-minute load average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def state() -> dict[str, Any]:
    """What moves while a machine works: clock (MHz), temperature (°C), throttle events so far, processor seconds in all and stolen.

    The clock is the median over the cores; null what the kernel does not tell.
    """
    return {"mhz": mhz(), "celsius": celsius(), "throttled": throttled(), **cpu_times()}


def mhz() -> float | None:
    """The clock right now: the median over the cores that we may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    told = [_text(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    found = [int(one) / 1000 for one in told if one.isdigit()]
    if not found:
        found = [float(line.partition(":")[2]) for line in _text("/proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
    return round(statistics.median(found), 0) if found else None


def celsius() -> float | None:
    """The warmest thermal zone."""
    told = [_text(str(path)) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    return max((int(one) / 1000 for one in told if one.lstrip("-").isdigit()), default=None)


def throttled() -> int | None:
    """How often the processor has cut its clock for heat or power since boot, over all cores."""
    told = [_text(str(path)) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counts = [int(one) for one in told if one.isdigit()]
    return sum(counts) if counts else None


def cpu_times() -> dict[str, float]:
    """Seconds of all cores since boot, and those that the hypervisor gave to others (steal)."""
    fields = [int(value) for value in _text("/proc/stat").splitlines()[0].split()[1:]] if _text("/proc/stat") else [0] * 8
    ticks = os.sysconf("SC_CLK_TCK")
    return {"total_s": sum(fields[:8]) / ticks, "steal_s": fields[7] / ticks}
