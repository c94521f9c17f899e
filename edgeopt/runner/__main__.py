"""`python -m edgeopt.runner`: `serve` answers frames on stdin until it ends, `template` forks processes that do,
`build BUNDLE` compiles a bundle on its device."""

import os
import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the folder where the user stands, a bundle perhaps: what lies there is no module of ours

# The runner does no linear algebra; numpy would start a pool of threads for it and count in the memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if sys.argv[1:2] == ["build"]:
    from edgeopt.runner.build import main

    sys.exit(main(sys.argv[2:]))
if sys.argv[1:2] == ["template"]:
    from edgeopt.runner.template import run

    run(sys.argv[2], int(sys.argv[3]))
    sys.exit()
if sys.argv[1:] != ["serve"]:
    sys.exit("usage: python -m edgeopt.runner serve | build BUNDLE")

from edgeopt.runner.serve import serve

serve()
