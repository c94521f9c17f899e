"""`python -m tests.zoo` makes what the cache lacks; `python -m tests.zoo NAME FOLDER` makes one model's files."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests import zoo
from tests.zoo import writing

if len(sys.argv) == 3:
    writing.make(importlib.import_module(f"tests.zoo.{sys.argv[1]}"), Path(sys.argv[2]))
else:
    for name in sys.argv[1:] or zoo.NAMES:
        found = zoo.get(name)
        print(name, found.folder, found.about["fp32"], sep="\t", flush=True)
