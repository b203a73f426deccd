"""IPython's shell alone: how long a cell takes when nothing carries it there and back."""

import contextlib
import io
import json
import time

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

config = Config()
# In and Out are kept, the database on disk is not: no kernel of ours writes one.
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)


def cell():
    out = io.StringIO()
    begin = time.perf_counter()
    with contextlib.redirect_stdout(out):
        shell.run_cell("print(1+1)", store_history=True)
    took = time.perf_counter() - begin
    assert out.getvalue() == "2\n", out.getvalue()
    return took * 1000


def rank(percent):
    return round(times[-(-len(times) * percent // 100) - 1], 3)


for _ in range(50):
    cell()
times = sorted(cell() for _ in range(200))
print(json.dumps({"p50_ms": rank(50), "p95_ms": rank(95), "p99_ms": rank(99), "n": len(times)}))
