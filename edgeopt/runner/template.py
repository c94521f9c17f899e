"""The template: a process with one runtime imported that forks serving children, so that opening a model anew costs no import.

`python -m edgeopt.runner template RUNTIME FD` takes messages on a Unix socket (SOCK_SEQPACKET) and answers
each with one line of JSON: `fork` comes with the child's stdin, stdout and stderr as descriptors and is
answered with its process id; `reap PID` waits for a child's end and is answered with its exit code.
It ends, and every child with it, when its parent does.

A fork copies the template's layout of memory, and where a model's tensors lie in memory is worth
percents of its speed. Each child therefore moves its heap and its mappings by a random amount
first: what is measured over many children is the model, not one layout.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import random
import socket

from edgeopt.runner import Problem, children, serve

FORKS = ("onnxruntime", "openvino", "null")  # others may hold threads or a GPU once they are imported, which no fork survives
_MOST = 1 << 10  # bytes of a message
_HEAP, _PAGES = 64 << 10, 512  # the largest shift of the heap in bytes, of the mappings in pages


def run(runtime: str, descriptor: int) -> None:
    """Fork a child for each request until the parent is gone."""
    children.die_with_parent()
    if runtime in FORKS:
        with contextlib.suppress(Problem):  # the child meets it again, and can tell it
            serve.runtime_of(runtime)
    gc.freeze()
    own = os.getpid()
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _MOST, 3)
            if not message:
                return
            do, _, argument = message.decode().partition(" ")
            if do == "fork":
                child = os.fork()
                if child == 0:
                    _become(control, descriptors, own)
                for one in descriptors:
                    os.close(one)
                control.send(json.dumps({"pid": child}).encode())
            else:
                _, status = os.waitpid(int(argument), 0)
                control.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _become(control: socket.socket, descriptors: list[int], parent: int) -> None:
    """Turn the forked process into a serving child; never returns."""
    os.setsid()
    control.close()
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    chance = random.SystemRandom()
    moved = bytes(chance.randrange(_HEAP)), mmap.mmap(-1, mmap.PAGESIZE * chance.randint(1, _PAGES))
    serve.serve(parent)
    del moved  # held until here: it is what moves the rest
