"""The error tree. Everything a user can cause is an EdgeoptError; anything else is a bug of ours.

    EdgeoptError
    ├── UsageError        2   recipe, arguments or input data are wrong
    ├── IncomparableError 4   two runs that were measured differently
    ├── MissingError      5   a package, target or device that is needed is not here
    │   └── UnfitError        a target can never run this model: its row is `unavailable`, not failed
    ├── UntrustedError    6   pickle, path escape, YAML bomb, bad signature
    ├── ResourceError     7   out of disk or memory
    ├── StepError         8   a pass or compile failed, NaN in outputs, parity broken
    └── Cancelled   130/143   SIGINT or SIGTERM

Gates that fail (3) or stay inconclusive (4) are results, not errors: the report carries them.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

EXIT_OK, EXIT_BUG, EXIT_USAGE, EXIT_GATE, EXIT_INCONCLUSIVE = 0, 1, 2, 3, 4
EXIT_MISSING, EXIT_UNTRUSTED, EXIT_RESOURCE, EXIT_STEP = 5, 6, 7, 8
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

_PRECEDENCE = (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_BUG,
    EXIT_UNTRUSTED,
    EXIT_RESOURCE,
    EXIT_USAGE,
    EXIT_STEP,
    EXIT_MISSING,
    EXIT_GATE,
    EXIT_INCONCLUSIVE,
)


def combine(codes: Iterable[int]) -> int:
    """The one exit code of several: the first in the order that README.md documents."""
    present = set(codes)
    return next((code for code in _PRECEDENCE if code in present), EXIT_OK)


@dataclass(frozen=True)
class Place:
    """Where in a text file something stands; `line` and `column` count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class EdgeoptError(Exception):
    """Place, cause and remedy of a failure that is not a bug of edgeopt."""

    exit_code = EXIT_BUG

    def __init__(self, cause: str, *, remedy: str = "", place: Place | None = None) -> None:
        super().__init__(cause)
        self.cause, self.remedy, self.place = cause, remedy, place

    def __str__(self) -> str:
        head = f"{self.place}: {self.cause}" if self.place else self.cause
        return f"{head}\n  → {self.remedy}" if self.remedy else head

    def to_json(self) -> dict[str, Any]:
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "cause": self.cause,
            "remedy": self.remedy,
            "place": str(self.place) if self.place else None,
        }


class UsageError(EdgeoptError):
    exit_code = EXIT_USAGE


class RecipeErrors(UsageError):
    """All problems found in one file, together."""

    def __init__(self, problems: list[EdgeoptError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.exit_code = combine(problem.exit_code for problem in problems)

    def __str__(self) -> str:
        return self.cause

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "problems": [problem.to_json() for problem in self.problems]}


class IncomparableError(EdgeoptError):
    """Two runs of which no figure should be held against the other's."""

    exit_code = EXIT_INCONCLUSIVE


class MissingError(EdgeoptError):
    exit_code = EXIT_MISSING


class UnfitError(MissingError):
    """The target's hardware lacks what the model asks for: nothing broke, and other rows go on."""


class UntrustedError(EdgeoptError):
    exit_code = EXIT_UNTRUSTED


class ResourceError(EdgeoptError):
    exit_code = EXIT_RESOURCE


class StepError(EdgeoptError):
    exit_code = EXIT_STEP


class Cancelled(EdgeoptError):
    def __init__(self, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__("cancelled", remedy="run the same command again: what is finished is reused")
        self.exit_code = exit_code


_ACROSS = (UsageError, MissingError, UnfitError, UntrustedError, ResourceError, StepError)
ERRORS: dict[str, type[EdgeoptError]] = {cls.__name__: cls for cls in _ACROSS}


def from_json(record: dict[str, Any]) -> EdgeoptError:
    """The error that `to_json` wrote, in another process."""
    cls = ERRORS.get(record["error"], EdgeoptError)
    place = Place(record["place"]) if record.get("place") else None
    return cls(record["cause"], remedy=record.get("remedy", ""), place=place)


def from_exception(error: BaseException, doing: str, remedy: str = "the full traceback is in the run's log") -> EdgeoptError:
    """What an exception of the system or of third-party code means to the user of edgeopt."""
    if isinstance(error, EdgeoptError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"{doing}: out of memory", remedy="use fewer or smaller samples, or a larger machine")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{doing}: the disk is full", remedy="free space, or point EDGEOPT_CACHE at a larger disk")
    if type(error).__name__ == "EncodeError":  # protobuf's: a message ends at 2 GiB
        cause = f"{doing}: the model passes 2 GB with its weights, and this step needs it in one protobuf, which ends there"
        return StepError(cause, remedy="leave the step out of this variant, or give a smaller model")
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0] if len(text) > 600 else text
    return StepError(f"{doing}: {type(error).__name__}: {first}", remedy=remedy)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known word, or lists what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known here: {', '.join(names)}" if names else "nothing is known here"
