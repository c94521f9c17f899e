"""Which TensorRT is here, and can it build or run: looked at in a child, because a library may crash the process that asks.

Two products with twin APIs: `tensorrt` (10.x and 11.x; needs a GPU to build) and `rtx` (the package
`tensorrt_rtx`; builds without one). `python -m edgeopt.runner.tensorrt_library PRODUCT` is that child.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.runner import children, nvml

__all__ = ["EXTRAS", "PACKAGES", "TITLES", "Finding", "gpu_problem", "load", "look", "trt", "why_not_build", "why_not_run"]

PACKAGES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
_LESSER = {"tensorrt": ("tensorrt_lean", "tensorrt_dispatch"), "rtx": ()}
_NO_DEVICE = 100
_LATER = 5  # versions of CUDA that are looked for beyond the driver's
_LONGEST_S = 120  # for a look: TensorRT alone takes seconds to import, from a cold disk tens of them
# Where a driver without NVML tells its version: the file, what to read in it, and what to call that.
DRIVER_FILES = (
    ("/proc/driver/nvidia/version", r"Kernel Module(?: for \w+)?\s+(\d[\d.]*)", ""),
    ("/etc/nv_tegra_release", r"# R(\d+) \(release\), REVISION: ([\d.]+)", "L4T "),
)


class Finding(NamedTuple):
    """`library`: why the product cannot be used, or empty; `gpu`: why no GPU can, or empty; its version, the driver's CUDA and the GPUs.

    `driver` is the driver's own version, as 580.65.06; empty where nothing tells it. `old`: why the driver is too old for the
    product, or empty; `bindings`: why cuda-bindings cannot be used with it, or empty.
    """

    library: str
    gpu: str
    version: str = ""
    cuda: int = 0
    gpus: tuple[dict[str, Any], ...] = ()
    driver: str = ""
    old: str = ""
    bindings: str = ""

    @property
    def why_not_run(self) -> str:
        """Why engines of the product cannot run, or an empty string."""
        return self.library or self.gpu or self.old or self.bindings


@cache
def look(product: str) -> Finding:
    """What is here for a product; asked once per process, in a child."""
    found = _asked(product)
    if isinstance(found, Finding):
        return found
    alone = _asked("")  # a library that breaks its process says nothing of the GPU
    if not isinstance(alone, Finding):
        alone = Finding("", f"the NVIDIA driver {alone}")
    return alone._replace(library=f"{TITLES[product]} {found}")


def _asked(product: str) -> Finding | str:
    """What a child finds for a product, or without one for the GPU alone; else what became of the child."""
    asked = children.python("edgeopt.runner.tensorrt_library", product)
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=_LONGEST_S, check=False, env=children.environment(), start_new_session=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"gives no answer within {_LONGEST_S} s"
    except (ValueError, IndexError):
        return f"crashes when it is {'imported' if product else 'asked'}: {_last(done.stderr)}"
    return Finding(**{**found, "gpus": tuple(found["gpus"])})


def why_not_build(product: str) -> str:
    """Why engines of a product cannot be built here, or an empty string. RTX builds without a GPU."""
    found = look(product)
    reason = "" if product == "rtx" else found.gpu or found.old
    return found.library or (reason and f"{TITLES[product]} builds on the GPU it builds for: {reason}")


def why_not_run(product: str) -> str:
    """Why engines of a product cannot run here, or an empty string."""
    return look(product).why_not_run


class Product:
    """Stands for the module of the product that `load` chose; a process uses one."""

    def __init__(self) -> None:
        self.module: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


if TYPE_CHECKING:
    import tensorrt as trt  # the type checker holds our calls against the full API; RTX's own names are used as Any
else:
    trt = Product()


def load(product: str) -> None:
    """Import a product as `trt`. Call it where a crash can be borne."""
    trt.module = import_module(PACKAGES[product])  # type: ignore[attr-defined, unused-ignore]


def library_problem(product: str) -> str:
    """Why the product's package does not load, or an empty string. Imports it."""
    package, title = PACKAGES[product], TITLES[product]
    install = f"pip install 'edgeopt[{EXTRAS[product]}]'"
    if not _has_code(package):
        if lesser := [name for name in _LESSER[product] if _has_code(name) or _has_code(f"{name}_bindings")]:
            return f"only {lesser[0]} is here: it runs version-compatible engines and cannot build: {install}"
        if not _has_code(f"{package}_bindings"):
            return f"{title} is not installed: {install}"
        package = f"{package}_bindings"
    try:
        module = import_module(package)
    except ImportError as error:
        said = str(error)
        if ".so" in said or ".dll" in said or "DLL" in said:
            return f"the Python binding of {title} is here without its libraries ({said.split(':', maxsplit=1)[0]}): {install}"
        return f"{title} cannot be imported: {said}"
    if package != PACKAGES[product]:
        return f"the Python binding of {title} is here without its package '{PACKAGES[product]}': {install}"
    if not hasattr(module, "Builder"):
        return f"this {package} cannot build engines (it has no Builder): {install}"
    return ""


def _has_code(package: str) -> bool:
    """Whether a package can be imported: type stubs leave a folder without code."""
    spec = find_spec(package)
    return bool(spec and spec.origin)


def gpu_problem() -> tuple[str, int, list[dict[str, Any]]]:
    """Why no GPU can be used here (or empty), the driver's CUDA version (13020 for 13.2) and the GPUs. Asks the driver itself."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is here (libcuda is missing)", 0, []
    code = cuda.cuInit(0)
    if code:
        reason = "it sees no GPU" if code == _NO_DEVICE else f"it refuses: cuInit answers {code}"
        return f"an NVIDIA driver is here, but {reason}", 0, []
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = [_gpu(cuda, index) for index in range(count.value)]
    return "" if gpus else "an NVIDIA driver is here, but it sees no GPU", version.value, gpus


def _gpu(cuda: Any, index: int) -> dict[str, Any]:
    """A GPU's name and compute capability; attributes 75 and 76 of cuDeviceGetAttribute are its two halves."""
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetName(name, 256, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
    return {"name": name.value.decode(errors="replace"), "compute_capability": f"{major.value}.{minor.value}"}


def driver_version() -> str:
    """The NVIDIA driver's version as NVML tells it, else the kernel module, else (Jetson) the release of L4T; empty where none does."""
    if found := nvml.driver():
        return found
    for path, pattern, title in DRIVER_FILES:
        try:
            if told := re.search(pattern, Path(path).read_text(errors="replace")):
                return title + ".".join(told.groups())
        except OSError:
            continue
    return ""


def driver_problem(product: str, cuda: int) -> str:
    """Why a driver for this CUDA (13020: 13.2) is too old for the product, or an empty string.

    A driver runs what was made for its own major version of CUDA and for those before; packages from pip bear it in their names.
    """
    newest, title = cuda // 1000, TITLES[product]
    later = next((number for number in range(newest + 1, newest + _LATER) if _installed(f"{PACKAGES[product]}_cu{number}")), None)
    remedy = f"update the driver, or install {title} for CUDA {newest}"
    return f"this {title} is for CUDA {later}, the NVIDIA driver here for CUDA {newest}: {remedy}" if later else ""


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def bindings_problem(cuda: int) -> str:
    """Why cuda-bindings, which an engine is run by, cannot be used with a driver for this CUDA (13020: 13.2), or an empty string.

    They bring a CUDA runtime of their own major version, and a driver runs those up to its own.
    """
    from importlib.metadata import version

    newest = cuda // 1000
    install = f"pip install 'cuda-bindings=={newest}.*'"
    try:
        import_module("cuda.bindings.runtime")
        found = version("cuda-bindings")
    except ImportError as error:
        return f"engines are run by cuda-bindings, and they cannot be imported ({error}): {install}"
    late = int(found.partition(".")[0]) > newest
    return f"cuda-bindings {found} are too new for this driver, which is for CUDA {newest}: {install}" if late else ""


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"


@cache
def seen(product: str) -> Finding:
    """What this process finds for a product, or without one for the GPU alone. Imports it: for a process in which a crash can be borne."""
    library = library_problem(product) if product else ""
    gpu, cuda, gpus = gpu_problem()
    version = "" if library or not product else str(import_module(PACKAGES[product]).__version__)
    if gpu:
        return Finding(library, gpu, version, cuda, tuple(gpus))
    old = driver_problem(product, cuda) if product else ""
    return Finding(library, gpu, version, cuda, tuple(gpus), driver_version(), old, bindings_problem(cuda))


def _main(product: str) -> None:
    children.die_with_parent()
    print(json.dumps(seen(product)._asdict()), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
