"""Child processes of the stages: the runner that opens artifacts, and the worker that does heavy work.

Both live in a session of their own, so that Ctrl-C reaches only the parent, which then kills them;
both die with their parent whatever kills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import ERRORS, EdgeoptError, MissingError, ResourceError, StepError, UsageError, from_json
from edgeopt.core.plan import PlanTarget
from edgeopt.core.target import UNDER_LOAD

STOPPED_S = 0.1  # longest wait for a stop to take effect; it takes some hundredths of a millisecond
_KINDS = {"usage": UsageError, "missing": MissingError, "resource": ResourceError, "step": StepError}

# Telemetry of every dependency off. OpenMP threads that wait asleep instead of spinning: training is
# twice as fast on two cores that others use too, and no slower on quiet ones.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}


def environment() -> dict[str, str]:
    """The environment of a child: it finds the modules that this process finds, and no others.

    Children are started with -P: a file `types.py` in the folder where the user stands must not be taken for Python's.
    """
    path = [os.environ.get("PYTHONPATH", ""), *(entry or str(Path.cwd()) for entry in sys.path)]
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(filter(None, path))}


class Template:
    """A process with a runtime imported, of which children are forked (see edgeopt.runner.template)."""

    def __init__(self, runtime: str, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        self.log = log
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeopt.runner", "template", runtime, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self) -> Forked:
        """A new serving process. Raises StepError when the template died, as by a runtime that crashes on import."""
        (stdin, to_child), (from_child, stdout) = os.pipe(), os.pipe()
        quiet = os.open(os.devnull, os.O_WRONLY)
        try:
            stderr = quiet if isinstance(self.log, int) else self.log.fileno()
            pid = int(self._ask("fork", [stdin, stdout, stderr])["pid"])
        except EdgeoptError:
            os.close(to_child)
            os.close(from_child)
            raise
        finally:
            for one in (stdin, stdout, quiet):
                os.close(one)
        return Forked(self, pid, os.fdopen(to_child, "wb"), os.fdopen(from_child, "rb"))

    def reap(self, pid: int) -> int:
        """The exit code of a child that has ended or is about to; -signal when it was killed."""
        return int(self._ask(f"reap {pid}", [])["code"])

    def _ask(self, message: str, descriptors: list[int]) -> dict[str, Any]:
        answer = b""
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [message.encode()], descriptors)
            answer = self._control.recv(1024)
        if not answer:
            raise StepError("the process that imports the runtime ended", remedy="its last words are in the run's log.txt")
        return dict(json.loads(answer))

    def close(self) -> None:
        self._control.close()
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Forked:
    """A process that a template forked, as far as a Popen is needed. It is the template's to reap: until then its id is taken."""

    def __init__(self, template: Template, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._template, self.pid, self.stdin, self.stdout = template, pid, stdin, stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._template.reap(self.pid)
        return self.returncode


class Child:
    """One artifact open in a process of its own. Frozen (SIGSTOP) while it is not its turn."""

    def __init__(self, name: str, log: IO[bytes] | int = subprocess.DEVNULL, template: Template | None = None) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | Forked
        if template:
            self.process = template.fork()
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeopt.runner", "serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )
        self.frozen = False

    def ask(self, do: str, arrays: dict[str, Any] | None = None, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Send one request and wait for its reply. Raises the child's error, or StepError when it died."""
        from edgeopt.runner import frames  # brings numpy, which a cached run does without

        stdin, stdout = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        try:
            frames.write(stdin, {"do": do, **fields}, arrays)
            header, reply = frames.read(stdout)
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise StepError(
                f"{self.name}: the process that runs the artifact {self._death()} during '{do}'", remedy=self._advice()
            ) from None
        if not header.get("ok"):
            error = header["error"]
            raise _KINDS.get(error["kind"], StepError)(f"{self.name}: {error['cause']}", remedy=error.get("remedy", ""))
        return header, reply

    def open(self, artifact: Artifact, used: PlanTarget) -> dict[str, Any]:
        """Open an artifact as its target wants it; the reply has load time and memory."""
        throughput = used.target.scenario in UNDER_LOAD
        return self.ask(
            "open",
            path=str(artifact.path),
            backend=artifact.format,
            threads=used.threads,
            requests="auto" if throughput else 1,
            options=used.target.options,
            execution=artifact.execution,
        )[0]

    def _death(self) -> str:
        code = self.process.wait(10)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _advice(self) -> str:
        if self.process.returncode == -signal.SIGKILL:
            return "the system may have run out of memory: use a smaller batch or a larger machine"
        return "the runtime crashed: its last words are in the run's log.txt"

    def freeze(self) -> None:
        """Stop the process, and wait until all its threads stand: those that spin in an idle runtime cannot disturb the neighbour."""
        if not self.frozen and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGSTOP)
            self.frozen = True
            late = time.monotonic() + STOPPED_S
            while time.monotonic() < late and self._states() - {"T"}:
                time.sleep(1e-4)

    def _states(self) -> set[str]:
        """The states of its threads, as proc(5) names them."""
        found = set()
        for path in list(Path(f"/proc/{self.process.pid}/task").glob("*/stat")):
            with contextlib.suppress(OSError):
                found.add(path.read_text().rpartition(")")[2].split()[0])
        return found

    def thaw(self) -> None:
        if self.frozen and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)
        self.frozen = False

    def cpu_seconds(self) -> float:
        """Time on a processor of the process's threads so far (readable while it is frozen), to the nanosecond where the kernel tells."""
        place = Path(f"/proc/{self.process.pid}")
        try:
            if spent := [int(one.read_text().split()[0]) for one in place.glob("task/*/schedstat")]:
                return sum(spent) / 1e9
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.thaw()
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(StepError):  # the template is gone, and its children with it
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Worker:
    """The process that imports frameworks: passes, compiles, data and scoring run in it, one job at a time."""

    def __init__(self, plan_folder: Path, store: Path, log: Path) -> None:
        self._arguments = [str(plan_folder), str(store)]
        self._log_path = log
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeopt.stages.worker", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def ask(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Do one job; yields its progress events, the last one is its result.

        Raises what the job raised. When the process dies, that job fails and the next one gets a new process.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        try:
            stdin.write(json.dumps(job).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died(job) from None
        while line := stdout.readline():
            event = json.loads(line)
            if event["event"] == "error":
                raise from_json(event) if event["error"] in ERRORS else _bug(event)
            yield event
            if event["event"] == "done":
                return
        raise self._died(job)

    def _died(self, job: dict[str, Any]) -> EdgeoptError:
        assert self._process
        code = self._process.wait(10)
        what = job.get("label") or job["do"]
        if code == -signal.SIGKILL:
            return ResourceError(f"{what}: killed by the system, most likely out of memory", remedy="use a larger machine or fewer samples")
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return StepError(f"{what}: the library's process {how}", remedy=f"its last words are in {self._log_path.name}")

    def close(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bug(event: dict[str, Any]) -> RuntimeError:
    return RuntimeError(f"in the worker: {event['cause']}\n{event.get('traceback', '')}")
