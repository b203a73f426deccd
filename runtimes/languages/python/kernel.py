"""Hearth's Python kernel: `kernel.py SOCKET_FD WINDOW_FD`.

Serves Jupyter's `execute_request` over the transport of `hearth_channel`, one at a time, on the main
thread. The environment of a run travels in the request's `metadata.hearth`: `env`, `cwd`, `stdin`
(base64) hold for this run only; `default_env` from this run on; `reseed` asks for fresh randomness before
the code. Messages of our own: `hearth_warm` (import and use what most code uses), `hearth_reseed` (fresh
randomness after a restore), `hearth_rehearse` (an `execute_request` that leaves no trace); each ends with
a `hearth_reply`, the last with `execute_reply`.
"""

import _signal
import base64
import builtins
import faulthandler
import gc
import getpass
import importlib
import importlib.util
import mmap
import os
import signal
import struct
import sys

from hearth_channel import Channel, OutStream
from hearth_shell import OWN_FILES, Shell
from IPython.core.error import StdinNotImplementedError

# Imported while warming, so that they cost nothing later.
WARM_MODULES = (
    "asyncio base64 bisect calendar collections concurrent.futures contextlib copy csv dataclasses datetime "
    "decimal difflib enum fractions functools glob gzip hashlib heapq html http.client inspect io itertools json "
    "logging math multiprocessing operator os pathlib pickle pprint random re shutil sqlite3 ssl statistics string "
    "subprocess tempfile textwrap threading time traceback typing unittest urllib.parse urllib.request uuid warnings "
    "xml.etree.ElementTree zipfile numpy pandas matplotlib.pyplot"
).split()

WARM_CELLS = (
    "print(1+1)",
    "1+1",
    "x = 1\nfor i in range(3):\n    print(i, x)\n",
    "def f(x):\n    return [x, {'a': (1, 2.5, None, True)}]\nf('text')",
    "import sys, json\njson.loads(json.dumps({'a': 1}))",
    "print('to stderr', file=sys.stderr)",
    "def g():\n    return 1 / 0\ng()",
    "undefined_name",
    "def broken(:",
    "%%time\n1",
    "await asyncio.sleep(0)",
)

WARM_DATA_CELLS = {
    "numpy": "import numpy as np\na = np.arange(6).reshape(2, 3)\nprint(a.mean())\na",
    "pandas": (
        "import pandas as pd\nimport io\nd = pd.DataFrame({'a': [1, 2, 3], 'b': list('xyz'), 'c': [.1, .2, .3]})\n"
        "d.groupby('b').sum(numeric_only=True)\nd.describe()\npd.read_csv(io.StringIO(d.to_csv()))\nd"
    ),
    "matplotlib": "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], label='a')\nplt.title('t')\nplt.legend();",
}


class Kernel:
    """One shell, one connection, and what a run changes for its own time."""

    def __init__(self, channel):
        self.channel = channel
        self.main = channel.main
        self.interruptible = False
        self.has_stdin = False
        # Whether code that is not ours has run here.
        self.ran = False
        self.originals = {}
        self.streams = (OutStream(channel, 1, "<stdout>"), OutStream(channel, 2, "<stderr>"))
        sys.stdout, sys.stderr = self.streams
        self.shell = Shell.make(channel)
        self.shell.streams = self.streams
        builtins.input = self.input
        getpass.getpass = self.getpass
        self.print = builtins.print
        signal.signal(signal.SIGINT, self.on_interrupt)

    # -- interrupts -------------------------------------------------------------------------------

    def on_interrupt(self, _signal, _frame):
        if not self.interruptible:
            return
        if self.channel.sender == self.main:
            self.channel.interrupted = True
            return
        raise KeyboardInterrupt

    # -- standard input ---------------------------------------------------------------------------

    def input(self, prompt="", /):
        """Reads a line of the run's standard input, if it was given one."""
        if not self.has_stdin:
            raise StdinNotImplementedError(
                "input was called, but this run was given no standard input"
            )
        if prompt != "":
            sys.stdout.write(str(prompt))
        line = sys.stdin.readline()
        if not line:
            raise EOFError("end of the run's standard input")
        return line[:-1] if line.endswith("\n") else line

    def getpass(self, prompt="Password: ", stream=None, **_options):
        """As `input`: there is no terminal to hide the text from."""
        return self.input(prompt)

    # -- serving ----------------------------------------------------------------------------------

    def serve(self):
        """Answers until the other side has gone."""
        channel = self.channel
        channel.send("status", {"execution_state": "idle"})
        while True:
            message = channel.read()
            if message is None:
                return
            header = message["header"]
            kind = header["msg_type"]
            channel.set_parent(header["msg_id"])
            if kind == "execute_request":
                self.take_seed(message)
                self.ran = True
                self.execute(message)
            elif kind == "hearth_rehearse":
                self.rehearse(message)
            elif kind == "hearth_warm":
                self.warm()
                channel.send("hearth_reply", {"status": "ok"})
            elif kind == "hearth_reseed":
                reseed(self.ran)
                channel.send("hearth_reply", {"status": "ok"})
            else:
                channel.send("hearth_reply", {"status": "error"})
            if channel.child:
                # A forked child that ran to the end of the cell has nothing more to do here.
                os._exit(0)

    def take_seed(self, message):
        """Reseeds if the request says so. Without fresh randomness no code runs: then the process ends."""
        try:
            if (metadata := message.get("metadata")) and metadata["hearth"].get("reseed"):
                reseed(self.ran)
        except BaseException as error:
            print("cannot reseed: %r" % (error,), file=sys.__stderr__)
            os._exit(70)

    def execute(self, message):
        """Runs one cell and replies."""
        shell, channel = self.shell, self.channel
        shell.error = None
        okay = False
        head = channel.head
        undo = []
        try:
            if metadata := message.get("metadata"):
                self.apply(metadata.get("hearth") or {}, undo)
            self.interruptible = True
            head[2] = 1
            okay = shell.run(message["content"]["code"])
            self.interruptible = False
            head[2] = 2
        except BaseException:
            self.interruptible = False
            head[2] = 2
            shell.showtraceback()
        # Not `signal.getsignal`, which turns the answer into an enumeration's member or fails to.
        if _signal.getsignal(_signal.SIGINT) != self.on_interrupt:
            signal.signal(signal.SIGINT, self.on_interrupt)
        for step in reversed(undo):
            try:
                step()
            except Exception:
                shell.showtraceback()
        channel.interrupted = False
        head[2] = 0
        if not okay and shell.error is None:
            shell.show_last_error()
        status = "ok" if okay and shell.error is None else "error"
        channel.reply(
            "execute_reply",
            '{"status":"%s","execution_count":%d}' % (status, shell.execution_count - 1),
        )

    def apply(self, hearth, undo):
        """Sets what this run asked for; what undoes it is appended to `undo`."""
        environ = os.environ
        if "default_env" in hearth:
            self.set_defaults(hearth["default_env"])
        if env := hearth.get("env"):
            before = {name: environ.get(name) for name in env}
            undo.append(lambda: restore(before))
            environ.update(env)
        if cwd := hearth.get("cwd"):
            here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.append(lambda: (os.fchdir(here), os.close(here)))
            os.chdir(cwd)
        if (stdin := hearth.get("stdin")) is not None:
            undo.append(self.give_stdin(base64.b64decode(stdin)))

    def set_defaults(self, defaults):
        """Makes `defaults` the environment of this and later runs, in place of those before."""
        restore(self.originals)
        self.originals = {name: os.environ.get(name) for name in defaults}
        os.environ.update(defaults)

    def give_stdin(self, data):
        """Makes `data` file descriptor 0, so that subprocesses read it as well."""
        file = os.memfd_create("stdin")
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.lseek(file, 0, os.SEEK_SET)
        os.dup2(file, 0)
        os.close(file)
        before = sys.stdin
        sys.stdin = open(0, closefd=False, encoding="utf-8", errors="surrogateescape")
        self.has_stdin = True

        def undo():
            self.has_stdin = False
            sys.stdin = before
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)

        return undo

    # -- warming ----------------------------------------------------------------------------------

    def rehearse(self, message):
        """Runs a cell as `execute` does, without a trace."""
        self.take_seed(message)
        if builtins.print is not self.print or sys.gettrace() or sys.getprofile():
            # Someone watches: a rehearsal would be seen.
            self.channel.reply("execute_reply", '{"status":"ok","execution_count":0}')
            return
        with self.shell.scratch(hooks=False):
            self.execute(message)

    def warm(self):
        """Imports and uses what most code uses; the user's namespace stays fresh."""
        loaded = set()
        for name in WARM_MODULES:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                continue
            try:
                importlib.import_module(name)
                loaded.add(name.partition(".")[0])
            except Exception as error:
                print("warm-up: cannot import %s: %s" % (name, error), file=sys.__stderr__)
        cells = [cell for name, cell in WARM_DATA_CELLS.items() if name in loaded]
        with self.shell.scratch(hooks=True):
            self.shell.user_ns["asyncio"] = sys.modules["asyncio"]
            for cell in (*WARM_CELLS, *cells):
                self.shell.run(cell)
            for _ in range(32):
                for cell in WARM_CELLS[:4]:
                    self.shell.run(cell)
        if "matplotlib" in loaded:
            sys.modules["matplotlib.pyplot"].close("all")
        gc.collect()
        gc.freeze()


def restore(variables):
    """Gives environment variables back the values (None: none) they had."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def reseed(ran):
    """Gives every generator in this process that must differ between clones a state from the system's randomness.

    `ran`: whether code that is not ours has run here.
    """
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        reseed_numpy(modules["numpy.random"])
    # OpenSSL draws its first seed when it is first asked for randomness, which warming does not do.
    if ran and "_ssl" in modules:
        modules["_ssl"].RAND_add(os.urandom(64), 64.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._last_timestamp = None
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process._current_process._config["authkey"] = process.AuthenticationString(os.urandom(32))


def reseed_numpy(random):
    """The state of numpy's global generator, all of it: `seed()` would go through much more code."""
    legacy = random.mtrand._rand
    kind = type(legacy._bit_generator)
    if kind.__name__ == "MT19937":
        key = struct.unpack("=624I", os.urandom(2496))
        state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        legacy.set_state({**state, "has_gauss": 0, "gauss": 0.0})
    else:
        random.set_bit_generator(kind())


def main():
    """Takes over the file descriptors and serves."""
    socket, window = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(socket, False)
    # A crash in C code says where it was.
    faulthandler.enable(sys.__stderr__)
    memory = mmap.mmap(window, 0)
    os.close(window)
    # What user code finds: an interactive session, not this script.
    OWN_FILES.add(__file__)
    sys.argv[:] = [""]
    sys.path[0] = ""
    Kernel(Channel(socket, memory)).serve()


main()
