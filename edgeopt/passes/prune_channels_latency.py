"""Latency as a goal: the pruned and the unpruned model timed in turns, and the share of the MACs that meets it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine, registry
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format
from edgeopt.passes import export_onnx
from edgeopt.passes.prune_channels_choice import Unreachable

if TYPE_CHECKING:
    from torch import nn

# Models are timed in turns, so that what slows the machine slows both: so many blocks each, of so many seconds.
_BLOCKS, _CONFIRMED, _BLOCK_S, _WARM_UPS = 15, 40, 0.02, 5
_PROBES = 6


class Latency:
    """Times models on this machine: exported to ONNX, in onnxruntime, batch 1."""

    def __init__(self, goal: float, signature: Signature, outputs: Sequence[str] | None, ctx: Context) -> None:
        self.goal, self.signature, self.outputs, self.ctx = goal, signature, outputs, ctx
        self.threads = machine.threads()
        registry.need("onnxruntime", "onnxruntime")

    def search(self, whole: nn.Module, pruned: Callable[[float], nn.Module]) -> float:
        """The largest share of the MACs found whose model keeps the goal. `pruned` makes the model of a share, or raises Unreachable."""
        before, low, high = self._session(whole), 0.0, 1.0
        fastest = (1.0, 1.0)  # (share of the latency, share of the MACs) of the fastest model seen
        share = self.goal
        for probe in range(_PROBES):
            self.ctx.progress(probe, _PROBES, f"timing a model of {share:.0%} of the MACs")
            try:
                ratio = self._ratio(before, self._session(pruned(share)), _BLOCKS)[0]
            except Unreachable as error:
                if error.nearest >= 1:
                    raise
                share = error.nearest + 1e-6
                ratio = self._ratio(before, self._session(pruned(share)), _BLOCKS)[0]
                if ratio > self.goal:
                    raise self._missed(ratio, share) from None
            fastest = min(fastest, (ratio, share))
            if ratio <= self.goal:
                low = share
            else:
                high = share
            share = (low + high) / 2
            if high - low < 0.02:
                break
        for _ in range(_PROBES if low else 0):  # what passed a short look must pass a long one
            self.ctx.progress(_PROBES, _PROBES, f"timing the model of {low:.0%} of the MACs for longer")
            try:
                ratio = self._ratio(before, self._session(pruned(low)), _CONFIRMED)[0]
            except Unreachable:
                break
            if ratio <= self.goal:
                return low
            fastest = min(fastest, (ratio, low))
            low *= 0.85
        raise self._missed(*fastest)

    def _missed(self, ratio: float, share: float) -> StepError:
        return StepError(
            f"{self.goal:.0%} of the latency cannot be reached: {ratio:.0%} is the nearest, with {share:.0%} of the MACs",
            remedy=f"ask for latency: {min(0.99, ratio + 0.02):.2f}, keep fewer layers, or choose a smaller round_to",
        )

    def confirm(self, whole: nn.Module, pruned: nn.Module) -> None:
        """Time the result once more, longer, and note what was measured and how."""
        self.ctx.progress(0, 0, "timing the result")
        ratio, before, after = self._ratio(self._session(whole), self._session(pruned), _CONFIRMED)
        self.ctx.note("latency_ms", [round(before, 4), round(after, 4)])
        self.ctx.note("latency_kept", round(ratio, 4))
        self.ctx.note(
            "latency_measured",
            f"onnxruntime, batch 1, {self.threads} threads, medians of {_CONFIRMED} blocks in turns; the ratio is the median of pairs",
        )
        if ratio > self.goal * 1.02:
            self.ctx.note("warning", f"timed once more, the model takes {ratio:.0%} of the latency, and {self.goal:.0%} was asked for")

    def _session(self, module: nn.Module) -> Callable[[], Any]:
        """One inference of a module's ONNX model on made-up inputs."""
        import onnxruntime

        muted = Context(folder=Path())
        proto = export_onnx.export(module, self.signature, self.outputs, muted, tuple(reversed(export_onnx.EXPORTERS)))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle session must not slow the other one
        with tempfile.TemporaryDirectory() as folder:
            path = onnx_format.save(proto, Path(folder) / onnx_format.MAIN)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = onnx_format.examples(self.signature, sizes=self._sizes(module))
        return lambda: session.run(None, feeds)

    def _sizes(self, module: nn.Module) -> dict[str, int]:
        """Sizes of open axes: one sample, the rest as the module runs with."""
        given = torch_format.examples(module, self.signature.inputs, self.outputs)
        pairs = zip(self.signature.inputs, given, strict=True)
        sizes = {size: one.shape[axis] for spec, one in pairs for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        return sizes | ({self.signature.batch_symbol: 1} if self.signature.batch_symbol else {})

    def _ratio(self, before: Callable[[], Any], after: Callable[[], Any], blocks: int) -> tuple[float, float, float]:
        """(latency of the second over the first, milliseconds of each), in turns."""
        import numpy as np

        for run in (before, after):
            for _ in range(_WARM_UPS):
                run()
        times = np.array([[_block(run) for run in (before, after)] for _ in range(blocks)])
        first, second = 1e3 * np.median(times, axis=0)
        return float(np.median(times[:, 1] / times[:, 0])), float(first), float(second)


def _block(run: Callable[[], Any]) -> float:
    """Median seconds of the runs that fit into one block, three at least."""
    found: list[float] = []
    while sum(found) < _BLOCK_S or len(found) < 3:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]
