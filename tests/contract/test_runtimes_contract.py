"""What every runtime in the table promises to the child that serves it."""

from __future__ import annotations

import importlib
import inspect

import pytest

from edgeopt.runner import RUNTIMES, serve


@pytest.mark.parametrize("name", RUNTIMES)
def test_it_has_what_the_server_calls(name):
    module = importlib.import_module(f"edgeopt.runner.{name}")
    assert inspect.isfunction(module.library) and not inspect.signature(module.library).parameters
    assert list(inspect.signature(module.open).parameters) == ["path", "threads", "requests", "options", "execution"]
    assert list(inspect.signature(getattr(module, "ready", lambda path: None)).parameters) == ["path"]


def test_tensorrt_is_found_before_anything_of_it_is_imported():
    module = serve.runtime_of("tensorrt")
    assert module.__name__ == "edgeopt.runner.tensorrt"
