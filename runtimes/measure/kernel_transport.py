#!/usr/bin/env python3
"""Round trips of one cell through the Python kernels there are: the measurement behind our own kernel.

    python3 -m venv /tmp/measure && /tmp/measure/bin/pip install ipython ipykernel numpy pandas matplotlib
    /tmp/measure/bin/pip install xeus-python          # optional
    /tmp/measure/bin/python measure/kernel_transport.py [--n 200] [--only NAME]

Every kernel runs with history off and colours off where it has the switch. Clients are in Python; the
floor is IPython's shell called in this process with no transport at all. Prints a Markdown table.
"""

import argparse
import io
import json
import mmap
import os
import pathlib
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

CELLS = ("print(1+1)", "1+1", "x = 1", "1/0")
KERNEL = pathlib.Path(__file__).resolve().parent.parent / "languages/python/kernel.py"


class Hearth:
    """Client of our kernel; also what the differential test drives."""

    name = "hearth kernel, socketpair"

    def __init__(self, warm=False):
        ours, theirs = socket.socketpair()
        window = os.memfd_create("window")
        os.ftruncate(window, 32768)
        self.window = mmap.mmap(window, 0)
        env = dict(os.environ, MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [sys.executable, str(KERNEL), str(theirs.fileno()), str(window)],
            pass_fds=(theirs.fileno(), window), stdin=subprocess.DEVNULL, env=env,
        )  # fmt: skip
        theirs.close()
        os.close(window)
        self.socket, self.buffer, self.count = ours, b"", 0
        assert self.read()["header"]["msg_type"] == "status"
        if warm:
            self.request("hearth_warm", {})
            while self.read()["header"]["msg_type"] != "hearth_reply":
                pass

    def read(self):
        while len(self.buffer) < 4 or len(self.buffer) < 4 + struct.unpack_from("<I", self.buffer)[0]:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError("the kernel has gone")
            self.buffer += data
        size = 4 + struct.unpack_from("<I", self.buffer)[0]
        message, self.buffer = json.loads(self.buffer[4:size]), self.buffer[size:]
        return message

    def request(self, kind, content, hearth=None):
        self.count += 1
        message = {"header": {"msg_id": str(self.count), "msg_type": kind}, "content": content}
        if hearth:
            message["metadata"] = {"hearth": hearth}
        data = json.dumps(message).encode()
        self.socket.sendall(struct.pack("<I", len(data)) + data)

    def run(self, code, kind="execute_request", hearth=None):
        self.request(kind, {"code": code}, hearth)
        messages = []
        while True:
            message = self.read()
            messages.append((message["header"]["msg_type"], message["content"]))
            if messages[-1][0] == "execute_reply":
                return messages

    def close(self):
        self.socket.close()
        self.process.wait(10)


class WarmHearth(Hearth):
    name = "hearth kernel, socketpair, warmed"

    def __init__(self):
        super().__init__(warm=True)


class Zmq:
    """A stock kernel over ZeroMQ IPC, driven by jupyter_client."""

    def __init__(self, argv):
        from jupyter_client.manager import KernelManager

        self.folder = tempfile.TemporaryDirectory()
        manager = KernelManager(transport="ipc", connection_file=self.folder.name + "/k.json")
        manager.ip = self.folder.name + "/k"
        manager.kernel_spec.argv = argv
        manager.start_kernel(stderr=subprocess.DEVNULL)
        self.manager, self.client = manager, manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=30)

    def run(self, code):
        identity = self.client.execute(code, allow_stdin=False, stop_on_error=False)
        messages = []
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != identity:
                continue
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind not in ("status", "execute_input"):
                messages.append((kind, content))
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == identity:
                messages.append(("execute_reply", reply["content"]))
                return messages

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Ipykernel(Zmq):
    name = "ipykernel, ZeroMQ IPC"

    def __init__(self):
        off = ["--HistoryManager.enabled=False", "--InteractiveShell.colors=NoColor"]
        super().__init__([sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *off])


class Xeus(Zmq):
    name = "xeus-python, ZeroMQ IPC"

    def __init__(self):
        super().__init__([sys.executable, "-m", "xpython_launcher", "-f", "{connection_file}"])


class InProcess:
    name = "ipykernel in-process"

    def __init__(self):
        from ipykernel.inprocess.manager import InProcessKernelManager

        manager = InProcessKernelManager()
        manager.start_kernel()
        self.client = manager.client()
        self.client.start_channels()

    def run(self, code):
        self.client.execute(code)
        reply = self.client.get_shell_msg(timeout=5)
        while self.client.iopub_channel.msg_ready():
            self.client.get_iopub_msg(timeout=1)
        return [("execute_reply", reply["content"])]

    def close(self):
        self.client.stop_channels()


class Floor:
    name = "IPython's shell, no transport"

    def __init__(self):
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell(config=config)

    def run(self, code):
        real, sys.stdout = sys.stdout, io.StringIO()
        try:
            self.shell.run_cell(code, store_history=True)
        finally:
            sys.stdout = real

    def close(self):
        pass


KERNELS = (Floor, Hearth, WarmHearth, InProcess, Ipykernel, Xeus)


def measure(kernel, code, n):
    for _ in range(min(n, 30)):
        kernel.run(code)
    times = []
    for _ in range(n):
        start = time.perf_counter()
        kernel.run(code)
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.95)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--only", help="a part of a kernel's name")
    options = parser.parse_args()
    print("| kernel | " + " | ".join("`%s` p50 / p95 ms" % cell for cell in CELLS) + " |")
    print("|---" * (len(CELLS) + 1) + "|")
    for make in KERNELS:
        if options.only and options.only not in make.name:
            continue
        try:
            kernel = make()
        except Exception as error:
            print("| %s | not run: %s |" % (make.name, str(error).splitlines()[:1]))
            continue
        cells = ["%.2f / %.2f" % measure(kernel, cell, options.n if cell != "1/0" else 30) for cell in CELLS]
        print("| %s | %s |" % (make.name, " | ".join(cells)), flush=True)
        kernel.close()


if __name__ == "__main__":
    main()
