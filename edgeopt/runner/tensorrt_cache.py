"""The kernels that TensorRT for RTX compiles on the first run, kept between processes; full TensorRT has none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_library import trt


class RuntimeCache:
    """One engine's compiled kernels. What goes wrong with them costs time, never a row."""

    def __init__(self, engine: Any, sha256: str) -> None:
        self._engine = engine
        self._cache: Any = None
        self._kept = False
        self.state = "none"
        root = os.environ.get("EDGEOPT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "edgeopt")  # noqa: PTH118
        self._path = Path(root).expanduser() / "tensorrt" / f"{sha256}.runtime-cache"

    def context(self, graphs: bool) -> Any:
        """An RTX context: kernels for dynamic shapes compiled before the first run returns, not behind the back of a measurement."""
        rtx: Any = trt
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy = rtx.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self.state = "warm" if self._filled() else "cold"
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def _filled(self) -> bool:
        """Whether what is kept could be taken over; what is damaged, or of another version, is compiled anew."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return False
        with log.collected():
            return bool(self._cache.deserialize(data))

    def keep_new(self) -> None:
        """Write what the first run of all compiled, once: the next process need not compile it. What hinders that, `keep` tells later."""
        if self.state == "cold" and not self._kept:
            self._kept = True
            self.keep()

    def keep(self) -> str:
        """Write what was compiled so far, whole or not at all. Returns why not, or an empty string."""
        if self._cache is None:
            return ""
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(memoryview(self._cache.serialize()))
            part.replace(self._path)
        except (OSError, TypeError) as error:  # TypeError: there was nothing to serialize
            return f"compiled kernels are not kept: {error}"
        return ""
