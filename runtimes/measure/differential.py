#!/usr/bin/env python3
"""Runs the same cells in our kernel and in stock ipykernel and compares what a user sees.

    /tmp/measure/bin/python measure/differential.py [--verbose]

Compared: stdout, stderr, displays and results (MIME bundles), error name, value and traceback, status and
execution count. Known and wanted differences are listed in `DIFFERS` with the reason.
"""

import argparse
import re
import sys

from kernel_transport import Hearth, Ipykernel

CELLS = r'''
print(1+1)
---
1+1
---
x = 5; x
---
x;
---
_
---
_ + __
---
_2, _i2, Out[2], In[1]
---
1/0
---
def f(x):
    return 1/x
def g():
    f(0)
g()
---
undefined
---
def (
---
  if True:
print(1)
---
    indented = 1
    indented + 1
---
print("before"); return 5
---
for i in range(3): print(i)
i
---
"text"
---
"a\nb"
---
b"x", 1.5, 2j, None, ..., True
---
None
---
[1, [2, {"a": (1,)}]] * 20
---
{"k": list(range(40))}
---
True
---
display("shown"); "value"
---
from IPython.display import HTML, Markdown, Image, JSON, update_display, display
h = display(HTML("<b>x</b>"), display_id="me")
Markdown("*m*")
---
display(HTML("<i>y</i>"), display_id="me", update=True)
---
JSON({"a": [1, float("1"), None]})
---
class R:
    def _repr_html_(self): return "<r>"
    def _repr_mimebundle_(self, **k): return {"application/x-test": {"v": 1}}
    def __repr__(self): return "R()"
R()
---
class Broken:
    def __repr__(self): raise ValueError("no repr")
print("x")
---
import sys
print("err", file=sys.stderr)
sys.stdout.write("no newline")
---
import sys; sys.exit(3)
---
raise SystemExit
---
raise KeyboardInterrupt
---
raise Exception("with \x1b[31mcolour\x1b[0m")
---
try:
    1/0
except Exception as e:
    raise ValueError("second") from e
---
try:
    {}["k"]
except KeyError:
    raise TypeError("third")
---
class E(Exception): pass
raise E("own", 1)
---
assert False, "why"
---
import warnings; warnings.warn("careful")
---
%time y = 1
y
---
%%time
2
---
%who_ls
---
!echo from the shell
---
z = !printf 'a\nb'
z
---
%%bash
echo one
echo two >&2
---
%%bash
exit 3
---
%%capture c
print("caught"); display(1)
---
c.stdout
---
%nosuchmagic
---
%%nosuchmagic
x
---
import asyncio
await asyncio.sleep(0)
"slept"
---
async def co(): return 7
await co()
---
await nothing
---
t = asyncio.create_task(co()); await t
---
[i async for i in nothing]
---
print(__name__, type(get_ipython()).__mro__[1].__name__)
---
pwd
---
list = 3
---
list
---
del list
---
x: int = 4
x
---
lambda: 1
---
import numpy as np; np.arange(3), np.float64(1.5)
---
np.eye(2)
---
import pandas as pd; pd.DataFrame({"a": [1, 2], "b": list("xy")})
---
pd.Series([1, 2])
---
import matplotlib.pyplot as plt
fig = plt.figure(); plt.plot([1, 2])
---
fig
---
plt.plot([1]); 1/0
---
len?
---
%precision 3
3.14159
---
3.14159
---
get_ipython().display_formatter.formatters["text/html"].for_type(int, lambda v: f"<i>{v}</i>")
5
---
5
---
get_ipython().run_cell("print('inner'); 3")
4
---
exec("q = 1\nprint(q)")
---
from __future__ import annotations
a: undefined_name = 1
---
def h(v: undefined_name): return v
h.__annotations__
---
"a" "b"  # comment?
---
print("é ü 漢 🙂")
---
f"{1!r} {x=}"
---
In[-1], len(In), sorted(Out)[:4]
---
print(*[k for k in sorted(globals()) if not k.startswith("_i") and not k.strip("_").isdigit()])
---
import os; os.write(1, b"") and None
---
x = 1
...
---
...
---
>>> 1 + 1
---
In [1]: 3
---
if True:
    pass
else:
    %time 1
---
x =
---
'unterminated
---
print("a"
---
"""doc"""
__doc__
---
global gg
gg = 1
gg
---
@staticmethod
def deco(): pass
deco
---
get_ipython().events.register("post_run_cell", lambda r: print("hook", r.result))
---
6
---
input("> ")
---
from getpass import getpass; getpass()
'''

DIFFERS = {
    "input(": "our message names no frontend",
    "getpass": "our message names no frontend",
    "%nosuchmagic": "the message on stderr is the same, its colours are not",
    "sys.exit": "no advice on how to leave a terminal",
    "!echo": "no terminal, so no carriage returns",
    "raise ValueError(\"second\")": "stock IPython 9 points at the wrong line of the first exception",
    "raise TypeError(\"third\")": "stock IPython 9 points at the wrong line of the first exception",
    "def g():": "stock IPython 9 shows more lines around the first frame",
}


def observe(messages):
    """What a user sees: streams joined, everything else in order."""
    seen, streams, reply = [], {"stdout": "", "stderr": ""}, {}
    for kind, content in messages:
        if kind == "stream":
            streams[content["name"]] += content["text"]
        elif kind == "error":
            seen.append(("error", content["ename"], content["evalue"], "\n".join(content["traceback"])))
        elif kind in ("display_data", "execute_result", "update_display_data"):
            count = content.get("execution_count")
            seen.append((kind, count, content["data"], content.get("metadata", {})))
        elif kind == "execute_reply":
            reply = content
            for payload in content.get("payload", []):
                if payload["source"] == "page":
                    streams["stdout"] += payload["data"]["text/plain"] + "\n"
    return {"streams": streams, "seen": seen, "status": reply["status"], "count": reply["execution_count"]}


def normal(value):
    """Takes out what can never agree: addresses, times, file names of cells, pictures' bytes, colours."""
    text = re.sub(r"\\x1b\[[0-9;]*m", "", repr(value))
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    text = re.sub(r"\((<ipython-input-\d+-[0-9a-f]+>|\d+\.py), line", "(<cell>, line", text)
    text = re.sub(r"<ipython-input-\d+-[0-9a-f]+>|/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)
    text = re.sub(r"(CPU times|Wall time):[^\\]*", r"\1", text)
    text = re.sub(r"'image/png': '[^']*'", "'image/png': '…'", text)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    ours, stock = Hearth(warm=True), Ipykernel()
    different = 0
    cells = CELLS.strip("\n").split("\n---\n")
    for cell in cells:
        a, b = observe(ours.run(cell)), observe(stock.run(cell))
        if normal(a) != normal(b):
            reason = next((why for part, why in DIFFERS.items() if part in cell), None)
            different += reason is None
            print("== %r%s" % (cell, "" if reason is None else "  (expected: %s)" % reason))
            if reason is None or options.verbose:
                for key in a:
                    if normal(a[key]) != normal(b[key]):
                        print("   ours  %s: %s\n   stock %s: %s" % (key, normal(a[key]), key, normal(b[key])))
    print("%d cells, %d differ" % (len(cells), different))
    ours.close()
    stock.close()
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
