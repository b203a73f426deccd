"""The official SDK, unmodified, against a running Hearth. Arguments: the old generation (0.1) or the new (0.3).

Every check prints one line; a failing one prints its traceback and makes the exit status 1.
"""

import datetime
import hashlib
import os
import socket
import sys
import threading
import time
import traceback
import warnings

warnings.simplefilter("ignore")

# Names below `localhost` are this machine (RFC 6761); not every resolver knows.
_getaddrinfo = socket.getaddrinfo


def _local(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if name and (name == "localhost" or name.endswith(".localhost")):
        host = "127.0.0.1"
    return _getaddrinfo(host, *args, **kwargs)


socket.getaddrinfo = _local

import httpx  # noqa: E402
from wrenn import Capsule, WrennClient  # noqa: E402
from wrenn.exceptions import (  # noqa: E402
    WrennAgentError,
    WrennAuthenticationError,
    WrennConflictError,
    WrennNotFoundError,
    WrennValidationError,
)

NEW = sys.argv[1] == "0.3"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def raises(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@check
def lifecycle(capsule):
    assert capsule.is_running()
    info = capsule.get_info()
    assert info.id == capsule.capsule_id and info.status == "running"
    assert info.created_at.tzinfo is not None
    assert capsule.capsule_id in [one.id for one in Capsule.list()]
    capsule.ping()
    assert Capsule.get_info(capsule.capsule_id).status == "running"


@check
def pause_and_resume(_):
    with Capsule(timeout=300) as capsule:
        capsule.commands.run("echo kept > /root/kept")
        assert capsule.pause().status == "paused"
        error = raises(WrennConflictError, capsule.commands.run, "true")
        assert error.code == "invalid_state", error.code
        raises(WrennConflictError, capsule.pause)
        raises(WrennConflictError, capsule.ping)
        assert capsule.resume().status == "running"
        assert capsule.commands.run("cat /root/kept").stdout == "kept\n"
        capsule.pause()
        again = Capsule.connect(capsule.capsule_id)
        assert again.is_running()
        assert again.commands.run("cat /root/kept").stdout == "kept\n"


@check
def destroyed_capsules_are_stopped_and_stay_readable(_):
    capsule = Capsule()
    capsule.destroy()
    capsule.destroy()
    assert capsule.get_info().status == "stopped"
    assert capsule.capsule_id not in [one.id for one in Capsule.list()]
    raises(WrennConflictError, capsule.commands.run, "true")


@check
def errors_have_their_classes(_):
    raises(WrennNotFoundError, Capsule.get_info, "cl-" + "0" * 24 + "1")
    raises(WrennValidationError, Capsule.get_info, "nonsense")
    raises(WrennNotFoundError, Capsule, template="no-such-template")
    raises(WrennAuthenticationError, Capsule.list, api_key="wrn_" + "0" * 32)


@check
def commands(capsule):
    result = capsule.commands.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3), result
    result = capsule.commands.run("pwd; echo $A$HOME; whoami", cwd="/tmp", envs={"A": "x"})
    assert result.stdout == "/tmp\nx/root\nroot\n", result.stdout
    binary = capsule.commands.run("printf '\\377\\376'")
    assert binary.stdout == "\ufffd\ufffd", binary
    assert capsule.commands.run("kill -9 $$").exit_code == -1
    raises(WrennAgentError, capsule.commands.run, "sleep 60 & sleep 60", timeout=1)
    left = capsule.commands.run("pgrep -c sleep || true").stdout.strip()
    assert left == "0", f"{left} processes outlived their timeout"


@check
def short_commands_lose_nothing(capsule):
    for number in range(100):
        result = capsule.commands.run(f"echo {number}")
        assert result.stdout == f"{number}\n", (number, result)
    large = capsule.commands.run("head -c 3000000 /dev/zero | tr '\\0' x")
    assert len(large.stdout) == 3_000_000


@check
def background_processes(capsule):
    handle = capsule.commands.run("echo first; sleep 600", background=True, tag="my-job")
    assert handle.tag == "my-job" and handle.pid > 0
    listed = {one.pid: one for one in capsule.commands.list()}
    assert listed[handle.pid].tag == "my-job"
    events = capsule.commands.connect(handle.pid)
    seen = [next(events), next(events)]
    assert [one.type for one in seen] == ["start", "stdout"], seen
    assert seen[1].data == "first\n"
    capsule.commands.kill(handle.pid)
    rest = list(events)
    assert rest[-1].type == "exit", rest
    deadline = time.monotonic() + 20
    while handle.pid in [one.pid for one in capsule.commands.list()]:
        assert time.monotonic() < deadline, "a killed process is still listed"
    raises(WrennNotFoundError, capsule.commands.kill, 4_000_000)
    unnamed = capsule.commands.run("sleep 600", background=True)
    assert unnamed.tag.startswith("proc-") and len(unnamed.tag) == 13, unnamed.tag
    capsule.commands.kill(unnamed.pid)


@check
def streams(capsule):
    events = list(capsule.commands.stream("for i in 1 2 3; do echo line $i; done; printf '\\303\\251'; exit 4"))
    assert events[0].type == "start" and events[0].pid > 0
    text = "".join(one.data for one in events if one.type == "stdout")
    assert text == "line 1\nline 2\nline 3\né", text
    assert events[-1].type == "exit" and events[-1].exit_code == 4
    direct = list(capsule.commands.stream("/bin/echo", args=["a b"]))
    assert "".join(one.data for one in direct if one.type == "stdout") == "a b\n"
    lines = list(capsule.commands.stream("seq 1 200000"))
    text = "".join(one.data for one in lines if one.type == "stdout")
    assert text == "".join(f"{number}\n" for number in range(1, 200_001))


@check
def files(capsule):
    capsule.files.write("/data/deep/hello.txt", "héllo")
    assert capsule.files.read("/data/deep/hello.txt") == "héllo"
    assert capsule.files.exists("/data/deep/hello.txt")
    assert not capsule.files.exists("/data/deep/nothing")
    assert not capsule.files.exists("/nowhere/nothing")
    raises(WrennNotFoundError, capsule.files.read, "/data/nothing")
    raises(WrennNotFoundError, capsule.files.list, "/nowhere")
    raises(WrennNotFoundError, capsule.files.remove, "/data/nothing")
    made = capsule.files.make_dir("/data/made")
    assert made.type == "directory" and made.name == "made"
    assert capsule.files.make_dir("/data/made").name == "made"
    capsule.commands.run("ln -s deep/hello.txt /data/link; ln -s nowhere /data/broken; mkfifo /data/fifo")
    entries = {one.name: one for one in capsule.files.list("/data")}
    assert set(entries) == {"deep", "made", "link", "broken", "fifo"}, set(entries)
    assert entries["link"].type == "file" and entries["deep"].type == "directory"
    below = {one.path for one in capsule.files.list("/data", depth=2)}
    assert "/data/deep/hello.txt" in below
    entry = next(one for one in capsule.files.list("/data/deep"))
    assert (entry.size, entry.owner, entry.permissions) == (6, "root", "-rw-r--r--"), entry
    capsule.files.remove("/data")
    assert not capsule.files.exists("/data")


@check
def large_files(capsule):
    block = os.urandom(1 << 20)
    size = 24
    digest = hashlib.sha256(block * size).hexdigest()
    capsule.files.write("/root/large", block * 5)
    assert capsule.files.read_bytes("/root/large") == block * 5
    capsule.files.upload_stream("/root/large", (block for _ in range(size)))
    shown = capsule.commands.run("sha256sum /root/large").stdout.split()[0]
    assert shown == digest
    back = hashlib.sha256()
    for piece in capsule.files.download_stream("/root/large"):
        back.update(piece)
    assert back.hexdigest() == digest
    capsule.files.remove("/root/large")


@check
def git(capsule):
    capsule.git.init("/repo")
    capsule.git.configure_user("Somebody", "somebody@example.org", scope="local", cwd="/repo")
    capsule.files.write("/repo/a.txt", "one\n")
    capsule.git.add(["a.txt"], cwd="/repo")
    capsule.git.commit("first", cwd="/repo")
    capsule.git.create_branch("side", cwd="/repo")
    branches = capsule.git.branches(cwd="/repo")
    assert "side" in str(branches), branches
    status = capsule.git.status(cwd="/repo")
    assert status is not None
    log = capsule.commands.run("git log --oneline", cwd="/repo")
    assert log.stdout.strip().endswith("first"), log


@check
def terminals(capsule):
    with capsule.pty(cols=100, rows=30) as term:
        output = b""
        term.write(b"stty size; echo $((6*7)); printf '\\342\\234\\223\\n'\n")
        for event in term:
            if event.type == "output":
                output += event.data if isinstance(event.data, bytes) else event.data.encode()
            if b"30 100" in output and b"\r\n42\r\n" in output and "✓".encode() in output:
                break
            assert event.type in ("started", "output", "ping"), event
        tag = term.tag
        assert tag and term.pid
        term.resize(120, 40)
        term.write(b"stty size\n")
        output = b""
        for event in term:
            if event.type == "output":
                output += event.data
            if b"40 120" in output:
                break
        # Back to it by its tag, from another connection: what was shown before comes again.
        with capsule.pty_connect(tag) as second:
            shown = b""
            for event in second:
                if event.type == "output":
                    shown += event.data
                if b"40 120" in shown:
                    break
            assert second.tag == tag
            second.write(b"exit 5\n")
            last = None
            for event in second:
                last = event
            assert last.type == "exit" and last.exit_code == 5, last


@check
def terminals_that_say_nothing_are_found_again(capsule):
    with capsule.pty(cmd="/bin/cat") as term:
        for event in term:
            if event.type == "started":
                break
        tag = term.tag
        started = time.monotonic()
        with capsule.pty_connect(tag) as second:
            for event in second:
                if event.type == "started":
                    break
            assert time.monotonic() - started < 10
            second.kill()
            last = None
            for event in second:
                last = event
            assert last.type == "exit", last


@check
def snapshots(capsule):
    capsule.commands.run("echo snapshot > /root/state")
    with WrennClient() as client:
        template = capsule.create_snapshot(name="sdk-snapshot")
        assert template.name == "sdk-snapshot" and template.type == "snapshot"
        assert capsule.is_running(), "the source of a snapshot must go on"
        raises(WrennConflictError, capsule.create_snapshot, name="sdk-snapshot")
        capsule.commands.run("echo newer > /root/state")
        capsule.create_snapshot(name="sdk-snapshot", overwrite=True)
        names = [one.name for one in client.snapshots.list(type="snapshot")]
        assert names.count("sdk-snapshot") == 1, names
        assert "sdk-snapshot" not in [one.name for one in client.snapshots.list(type="base")]
        with Capsule(template="sdk-snapshot") as copy:
            assert copy.commands.run("cat /root/state").stdout == "newer\n"
        client.snapshots.delete("sdk-snapshot")
        raises(WrennNotFoundError, client.snapshots.delete, "sdk-snapshot")
        unnamed = capsule.create_snapshot()
        assert unnamed.name.startswith("template-"), unnamed.name
        client.snapshots.delete(unnamed.name)


@check
def ports(capsule):
    capsule.files.write("/srv/index.html", "from inside")
    server = "cd /srv && exec python3 -m http.server 8000 --bind 127.0.0.1"
    handle = capsule.commands.run(server, background=True)
    url = capsule.get_url(8000).replace("ws://", "http://")
    key = os.environ["WRENN_API_KEY"]
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.get(url, headers={"X-API-Key": key})
        if answer.status_code == 200:
            break
        assert time.monotonic() < deadline, (answer.status_code, answer.text)
    assert answer.text == "from inside"
    assert httpx.get(url).status_code == 401
    envd = capsule.get_url(49983).replace("ws://", "http://")
    assert httpx.get(envd, headers={"X-API-Key": key}).status_code == 400
    capsule.commands.kill(handle.pid)


@check
def numbers(capsule):
    if not NEW:
        return
    with WrennClient() as client:
        stats = client.capsules.stats(range="1h")
        assert stats.current.running_count >= 1, stats
        today = datetime.date.today()
        usage = client.capsules.usage(from_=today - datetime.timedelta(days=7), to=today)
        assert usage.points is not None
        deadline = time.monotonic() + 60
        while True:
            metrics = client.capsules.metrics(capsule.capsule_id, range="10m")
            if metrics.points:
                break
            assert time.monotonic() < deadline, "no metrics for a minute"
            time.sleep(1)
        assert metrics.points[-1].mem_bytes > 0
        assert client.capsules.get(capsule.capsule_id).disk_size_mb > 0


@check
def events(_):
    if not NEW:
        return
    seen = []
    ready = threading.Event()

    def listen():
        with WrennClient() as client:
            for event in client.events.stream():
                seen.append(event)
                ready.set()
                if event.event == "capsule.destroy":
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert ready.wait(20), "no `connected` event"
    capsule = Capsule()
    capsule.pause()
    capsule.destroy()
    listener.join(30)
    assert not listener.is_alive(), [one.event for one in seen]
    mine = [one for one in seen if one.resource and one.resource.id == capsule.capsule_id]
    kinds = [one.event.value for one in mine]
    for kind in ("capsule.create", "capsule.pause", "capsule.destroy"):
        assert kind in kinds, kinds
    assert all(one.timestamp for one in mine)


def main():
    failed = 0
    wanted = sys.argv[2:]
    with Capsule() as capsule:
        for function in CHECKS:
            if wanted and function.__name__ not in wanted:
                continue
            started = time.monotonic()
            try:
                function(capsule)
                print(f"ok {function.__name__} {time.monotonic() - started:.1f} s", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED {function.__name__}", flush=True)
                traceback.print_exc(file=sys.stdout)
                sys.stdout.flush()
    print(f"{failed} failed", flush=True)
    os._exit(1 if failed else 0)


main()
