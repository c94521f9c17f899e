"""What TensorRT says: one logger for the process, and what an error of its means to the user.

A failed build returns nothing but None, its reason is only in the log; some misuse logs an error and
still returns an engine. So whoever calls TensorRT here collects what it logs and lets `problem` judge.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from edgeopt.runner import Problem
from edgeopt.runner.tensorrt_library import trt


class Line(NamedTuple):
    severity: str  # INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE
    text: str


Made = TypeVar("Made")
_HEARD = ("INTERNAL_ERROR", "ERROR", "WARNING")  # a build says tens of thousands of lines below these
_sinks: dict[int, list[list[Line]]] = {}  # by thread, innermost last
_loggers: list[Any] = []

# Without a driver every error of the API is followed by this one; it says nothing of the model.
_NO_DRIVER = re.compile(r"^.*(cudaError 35|CUDA driver version is insufficient).*$\n?", re.MULTILINE)
_FULL = re.compile(r"OutOfMemory|cudaErrorMemoryAllocation|out of memory")
# The builder tries tactics, and leaves those that find no memory or do not fit the layer: errors in name only, while others are left.
_TACTIC = re.compile(r"[Ss]kipping tactic|Tactic Device request|OutOfMemory|could not be allocated")
_FRAME = re.compile(r"While parsing node number|--- (Begin|End) node ---")
_PLACES = re.compile(
    r"\s*In \w+ at /_src/\S+|\[\w+\.(cpp|h):\d+: \w+\] |^[\w:\[\].]+: Error Code \d+: [\w ]*?(?=[(\[A-Z])|^\w+\.cpp:\d+: (ERROR: )?"
)
_CULPRIT = re.compile(
    r"operation '([^']+)'|Node name: (\S+)|Invalid Node - (\S+)|(?:for node|at node) '?([\w./:]+)|initializer: (?!In node)(\S+)"
)

S8 = "quantize it with quantize-int8 for this target (int8: s8s8)"
_HALF = "put cast-fp16 in the variant, or leave 7.5 out of compute_capabilities"
RUN = "its own words are in the run's log; nvidia-smi tells how the GPU is"
OPERATORS = "export the model with other operators, or put simplify first"
_DRIVER = "see that nvidia-smi works and that its CUDA is not older than TensorRT's; update the driver, or install TensorRT for that CUDA"
_ATTENTION = "export the model at an opset below 23, where attention is written out"
_TYPES = "cast inputs to float32, int32 or int64 on export"
# What an error means: a pattern, the cause ({0} is its first group), and what to do.
_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (r"operation '([^']+)' for Turing.*FP32 GEMM", "'{0}' multiplies FP32 matrices, and Turing (7.5) has no kernel for it", _HALF),
    (r"target\(s\) ([\w, ]+), because.*datatypes: b16", "BFLOAT16 does not run on {0}", "use cast-fp16 instead, or newer GPUs"),
    (r"target\(s\) ([\w, ]+), because.*datatypes: fp8", "FLOAT8 does not run on {0}", S8),
    (r"target\(s\) ([\w, ]+), because.*datatypes: (\w+)", "{1} does not run on {0}", "leave those GPUs out of compute_capabilities"),
    (r"cudaError 35|driver version is insufficient", "the NVIDIA driver is too old for this TensorRT", _DRIVER),
    (_FULL.pattern, "the GPU's memory is full", "use a smaller batch, or end what else uses the GPU"),
    (r"within workspace limit|[Ii]nsufficient (memory|workspace)", "the workspace is too small for a layer", "raise workspace_mb"),
    (r"no optimization profile", "an axis may vary and has no range", "give it: options: {profiles: {AXIS: [min, opt, max]}}"),
    (r"[Nn]on-zero zero point|shiftIsAllZeros", "a zero point is not 0", S8),
    (r"UINT8 types? for|input type of UINT8", "UINT8 is used inside the model", S8),
    (r"has type Int32 but must have type|QuantizeLinear.*INT32", "INT32 is dequantized (a quantized bias)", S8),
    (r"Scale coefficients must all be positive", "a scale is not above 0", S8),
    (r"must have (same|identical) (input )?types", "floats of different widths meet in one node", "cast once, by cast-fp16, or nowhere"),
    (r"not supported by a dedicated kernel", "TensorRT has no kernel for this Attention", _ATTENTION),
    (r"creator.*was not found|[Pp]lugin (was )?not found", "TensorRT has no such operator", OPERATORS),
    (r"no runners that implement it|[Cc]ould not find any implementation", "there is no kernel for a node", OPERATORS),
    (r"Unable to load library: (\S+):", "{0}, needed for version-compatible engines, is not here", "leave version_compatible out"),
    (r"Failed to import initializer: (?!In node)(\S+)|cannot be imported", "'{0}' has a type that TensorRT does not know", S8),
    (r"onnxDtype|[Uu]nsupported (ONNX )?data ?type|convertDtype", "a tensor has a type that TensorRT does not know", _TYPES),
    (r"[Vv]ersion tag does not match|[Vv]ersion mismatch", "another version of TensorRT built the engine", "build it here again"),
)


def logger() -> trt.ILogger:
    """The process's one logger: TensorRT keeps the first it is given. Errors go to stderr too, in TensorRT's own words."""
    if not _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                heard(Line(str(severity).rpartition(".")[2], msg))

        _loggers.append(Logger())
    one: trt.ILogger = _loggers[0]
    return one


def started(make: Callable[[trt.ILogger], Made], said: list[Line]) -> Made:
    """A Builder or a Runtime, with TensorRT's own plugins: the parser and engines ask for them by name, and nothing else registers them.

    Raises a Problem where there is none: CUDA does not start, as with a driver that is too old, and only a warning in `said` tells it.
    """
    try:
        made = make(logger())
    except TypeError:  # what the binding makes of a null pointer
        told = [plain(line.text) for line in said]
        raise Problem("missing", f"TensorRT does not start: {' '.join(told) or 'it gives no reason'}", _DRIVER) from None
    if register := getattr(trt, "init_libnvinfer_plugins", None):  # TensorRT for RTX has none
        with collected():
            register(logger(), "")
    return made


def heard(line: Line) -> None:
    """Give a line to the innermost listener of the thread that says it; one of a thread that TensorRT made for itself to every thread's."""
    if line.severity not in _HEARD:
        return
    own = _sinks.get(threading.get_ident())
    for stack in [own] if own else list(_sinks.values()):
        for sink in stack[-1:]:  # another thread may take its last one away meanwhile
            sink.append(line)
    for text in errors([line]):
        print(f"TensorRT: {text}", file=sys.stderr)


@contextmanager
def collected() -> Iterator[list[Line]]:
    """The errors and warnings that TensorRT logs meanwhile for this thread, but for those of a `collected` inside."""
    here, sink = threading.get_ident(), list[Line]()
    stack = _sinks.setdefault(here, [])
    stack.append(sink)
    try:
        yield sink
    finally:
        stack.pop()
        if not stack:
            del _sinks[here]


def errors(lines: list[Line]) -> list[str]:
    """The errors among the lines, without the noise that a missing GPU makes."""
    found = [_NO_DRIVER.sub("", text).strip() for text in all_errors(lines)]
    return [text for text in found if text]


def all_errors(lines: list[Line]) -> list[str]:
    """The errors among the lines where a GPU is at work: what they say of its driver is no noise."""
    return [line.text.strip() for line in lines if line.severity in ("ERROR", "INTERNAL_ERROR")]


def lasting(lines: list[Line]) -> list[str]:
    """The errors among the lines that tell against an engine which was made all the same: not those on tactics that were passed over."""
    return [text for text in errors(lines) if not _TACTIC.search(text)]


def warnings(lines: list[Line]) -> list[str]:
    """The warnings among the lines, each once; tactics that were passed over are one, whatever severity TensorRT gave them."""
    told = dict.fromkeys(line.text.strip() for line in lines if line.severity == "WARNING" or _TACTIC.search(line.text))
    tactics = [text for text in told if _TACTIC.search(text)]
    counted = [f"{len(tactics)} lines on tactics that were passed over, as: {plain(tactics[0])}"] if tactics else []
    return [text for text in told if text not in tactics] + counted


def problem(doing: str, found: list[str], otherwise: str = OPERATORS) -> Problem:
    """What errors of TensorRT mean: the cause with the node's name, and what to do; `otherwise`, where they are none that we know."""
    whole = "\n".join(found)
    node = culprit(whole)
    cause, remedy = meaning(found, otherwise)
    named = f"'{node}': " if node and f"'{node}'" not in cause else ""
    return Problem("resource" if _FULL.search(whole) else "step", f"{doing}: {named}{cause}", remedy)


def meaning(found: list[str], otherwise: str = OPERATORS) -> tuple[str, str]:
    """Cause and remedy of errors: in words of ours where they are known, else in TensorRT's without its source's places."""
    whole = "\n".join(found)
    for pattern, cause, remedy in _MEANINGS:
        if match := re.search(pattern, whole):
            return cause.format(*(group or "" for group in match.groups())), remedy
    telling = [text for text in found if not _FRAME.search(text)] or found
    return plain(telling[0]) if telling else "TensorRT gives no reason", otherwise


def culprit(text: str) -> str:
    """The node or tensor that an error is about, where it names one."""
    match = _CULPRIT.search(text)
    return next((group for group in match.groups() if group), "").strip("'\",.:") if match else ""


def plain(text: str) -> str:
    """An error without the places in TensorRT's own source."""
    return " ".join(_PLACES.sub("", line) for line in text.splitlines() if not _FRAME.search(line)).strip()
