"""`python -m edgeopt.runner serve`: a child that answers frames on stdin until it ends."""

import os
import sys

# The runner does no linear algebra; numpy would start a pool of threads for it and count in the memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if sys.argv[1:] != ["serve"]:
    sys.exit("usage: python -m edgeopt.runner serve")

from edgeopt.runner.serve import serve

serve()
