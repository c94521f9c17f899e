"""Samples from a function that the user writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeopt.core import samples, usercode
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Dataset, Sample


class Python(Dataset):
    """A function of yours that yields inputs, or (inputs, label), one sample at a time and always in the same order.

    Inputs are {name: array} without the batch axis, or one array when the model has one input. The
    function is called anew for each walk; a generator never holds more than a sample.
    """

    source: str = Field(description="file.py:function or package.module:function")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    reads: list[str] = Field(default_factory=list, description="files and folders that it reads: when they change, edgeopt runs again")

    def user_files(self, base: Path) -> list[Path]:
        return [*usercode.files(self.source, base), *usercode.read_files(self.reads, base)]

    def packages(self, base: Path) -> list[str]:
        return usercode.packages(self.source, base)

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        function = usercode.load(self.source, base)
        doing = f"data: {self.source}"
        result = usercode.call(lambda: function(**self.arguments), doing)
        if isinstance(result, (str, bytes, tuple, Mapping)) or not isinstance(result, Iterable):
            shown = f"a {type(result).__name__}" if result is not None else "nothing"
            raise UsageError(f"{doing} returned {shown}, not samples", remedy="yield samples: `yield inputs` or `yield inputs, label`")
        for index, item in enumerate(usercode.each(result, doing)):
            inputs, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            if isinstance(inputs, tuple):
                raise UsageError(
                    f"data: sample {index} of {self.source} is a tuple of {len(inputs)}",
                    remedy="yield inputs, or (inputs, label); several inputs are a dict {name: array}",
                )
            yield Sample(dict(samples.named(inputs, signature, f"data: sample {index} of {self.source}")), label)
