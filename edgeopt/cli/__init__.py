"""The command line: the only room that prints, colours and exits. `main` is the one place that catches."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from edgeopt.cli.answer import Answer, coloured, complain, say
from edgeopt.cli.commands import COMMANDS

NAME = "edgeopt"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    try:
        code = call(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # in the moments before and after the one place that catches
        code = 130
    _forget_interrupt()
    sys.exit(code)


def _forget_interrupt() -> None:
    """Python ends by SIGINT instead of an exit code once an interrupt has left an `exec` of a string, caught since or not.

    Namedtuples and dataclasses are made by such, so an import may be where Ctrl-C arrives. Each `exec` starts anew.
    """
    exec("")


def call(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever is raised becomes words and a code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an arrow must not crash a terminal that has none
    if request := os.environ.get("_EDGEOPT_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(COMMANDS, {}, NAME, "_EDGEOPT_COMPLETE", request)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them reads every installed package's metadata
    gc.set_threshold(50_000)  # collecting among the classes that imports leave costs a tenth of a plan
    as_json = "--json" in arguments
    answer: Answer | None
    with _sigterm(), _reserved(as_json):
        try:
            with COMMANDS.make_context(NAME, list(arguments)) as context:
                answer = COMMANDS.invoke(context)
        except click.exceptions.Exit as done:
            return _flushed(done.exit_code)
        except BaseException as error:  # noqa: BLE001 (the one place that catches)
            answer = _failure(error)
    if answer is None:
        return _flushed(0)
    say(answer.json() if as_json else answer.words())
    return _flushed(answer.exit_code)


def _failure(error: BaseException) -> Answer:
    """What an exception means: told on standard error, with the document that `--json` prints."""
    from edgeopt.core import errors

    if isinstance(error, click.UsageError):
        cause = error.format_message().rstrip(".")
        path = error.ctx.command_path if error.ctx else NAME
        error = errors.UsageError(cause[:1].lower() + cause[1:], remedy=f"{path} --help")
    elif isinstance(error, (KeyboardInterrupt, click.Abort)):
        error = errors.Cancelled(errors.EXIT_TERMINATED if isinstance(error, _Terminated) else errors.EXIT_INTERRUPTED)
    elif isinstance(error, MemoryError):
        error = errors.from_exception(error, NAME)
    elif isinstance(error, OSError) and not isinstance(error, (ConnectionError, ChildProcessError)):
        error = _of_system(error)
    if not isinstance(error, errors.EdgeoptError):
        return _bug(error)
    problems = getattr(error, "problems", [error])
    for problem in problems:
        complain(str(problem), prefix="" if isinstance(problem, errors.Cancelled) else "error")
    if len(problems) > 1:
        complain(f"{len(problems)} problems", prefix="")
    return Answer(error.to_json(), "", error.exit_code)


def _of_system(error: OSError) -> Exception:
    """Full disks and folders that cannot be written are the user's to mend; the rest is ours."""
    import errno

    from edgeopt.core import errors

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.from_exception(error, str(error.filename or NAME))
    if error.filename and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
    ):
        return errors.UsageError(
            f"{error.filename}: {(error.strerror or 'refused').lower()}", remedy="choose another path, or mend its permissions"
        )
    return error


def _bug(error: BaseException) -> Answer:
    import traceback

    from edgeopt.core.errors import EXIT_BUG

    text = f"{type(error).__name__}: {error}"
    remedy = "please report it with the lines above and what `edgeopt doctor --json` prints"
    sys.stderr.write("".join(traceback.format_exception(error)))
    complain(f"this is a bug of edgeopt: {text}\n  → {remedy}")
    return Answer({"error": "Bug", "exit_code": EXIT_BUG, "cause": text, "remedy": remedy, "place": None}, "", EXIT_BUG)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stands: like Ctrl-C it is no Exception, so nothing on the way takes it for a failed row."""


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that every `finally` runs and no child is left behind."""

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _reserved(as_json: bool) -> Iterator[None]:
    """With `--json`, standard output is kept for one document: what libraries print goes to standard error."""
    if not as_json:
        yield
        return
    import contextlib

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _flushed(code: int) -> int:
    """Flush standard output now: at the interpreter's exit a closed pipe would be a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


__all__ = ["Answer", "call", "coloured", "main"]
