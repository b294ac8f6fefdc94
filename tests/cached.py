"""A script as `python script.py ARGUMENTS` runs it, in a process that keeps all that it compiles: python cached.py ...

jax lets the first of several processes write its compile cache, and no other one. On CPU the programs of the others
have other keys: they compile all of them in each run, two thirds of their time (10 of 15 seconds of pod_run.py).
"""

import os
import runpy
import sys
from types import SimpleNamespace
from unittest import mock

from jax._src import compiler

write, first = compiler._cache_write, SimpleNamespace(global_state=SimpleNamespace(process_id=0))


def written(*arguments):
    with mock.patch.object(compiler, "distributed", first):
        write(*arguments)


if __name__ == "__main__":
    compiler._cache_write = written
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
