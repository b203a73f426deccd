"""The kernel's side of the transport: frames on a socket, the output window, and the output streams.

Frames. A frame is a little-endian u32 length and that many bytes of JSON: one Jupyter message with the
members `header`, `parent_header`, `metadata` and `content` of the Jupyter messaging protocol (5.4).
All channels of a Jupyter kernel share the one stream, so order is total and `execute_reply` comes
last: it stands for `status: idle`. Messages of the kernel carry no `msg_id`, nothing refers to them.

The output window. Text written by a cell is held back until the cell ends or the window is full, so
that a short cell costs one write. So that a long cell's text still arrives promptly, the held text
lives in memory shared with the other side, which looks at it when it has heard nothing for a while.
No thread, no timer and no signal is needed here, and text is not lost when the process dies.
Layout: u32 number of frames sent, u32 end of the text, u32 phase (0 idle: an
interrupt would be ignored, 1 in a cell's code, 2 reporting its end), 4 bytes spare, then records of one tag byte
(1 stdout, 2 stderr), u32 length (0: the last record, it reaches to the end) and UTF-8 text.
The number of frames tells the reader whether what it sees comes after all it has received.
"""

import base64
import io
import json
import os
import struct
import threading

MAX_FRAME = 48 << 20
MAX_TEXT = 1 << 20
HEAD = 16
TAGS = {1: '"stdout"', 2: '"stderr"'}

_quote = json.encoder.encode_basestring
_decode = json.JSONDecoder().scan_once
_pack = struct.Struct("<I").pack
_unpack = struct.Struct("<I").unpack_from
_os_read, _os_write, _thread_id = os.read, os.write, threading.get_ident


def _default(value):
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return repr(value)


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
).encode


def _clean(value, depth=0):
    """`value` with everything JSON cannot say turned into text."""
    if depth > 200:
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    value = _default(value)
    return value if isinstance(value, str) else _clean(value, depth + 1)


def encode(value):
    """JSON text of any value; what JSON lacks becomes text."""
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError):
        return _encode(_clean(value))


class Channel:
    """The socket and the window. All methods may be called from any thread."""

    def __init__(self, fd, window):
        self.fd = fd
        self.window = window
        self.capacity = len(window)
        self.head = memoryview(window)[:12].cast("I")
        self.lock = threading.RLock()
        self.child = False
        self.main = _thread_id()
        self.sender = 0
        self.interrupted = False
        self.parent = '""'
        self.tag = 0
        self.record = HEAD
        self.end = HEAD
        self.deferred = b""
        self.received = b""
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self):
        # The socket is the parent's alone; a child's output goes to the pipes.
        if not self.child:
            self.child = True
            self.lock = threading.RLock()
            os.close(self.fd)

    def set_parent(self, msg_id):
        """Output from now on belongs to the request `msg_id`."""
        with self.lock:
            if self.end != HEAD or self.deferred:
                self.flush()
            self.parent = _quote(msg_id)

    def read(self):
        """The next message, or None when the other side has gone."""
        received = self.received
        while True:
            if len(received) >= 4:
                size = _unpack(received)[0] + 4
                if len(received) >= size:
                    text = received[4:size].decode()
                    self.received = received[size:]
                    return _decode(text, 0)[0]
            data = _os_read(self.fd, 1 << 16)
            if not data:
                return None
            received = self.received = received + data

    def write(self, tag, text):
        """Holds `text` back in the window, or sends when it is full."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = text.encode("utf-8", "backslashreplace")
        with self.lock:
            if self.child:
                _write_all(tag, data)
                return
            start = self.end
            if tag != self.tag:
                if not data:
                    return
                if self.deferred:
                    self.flush()
                    start = self.end
                start += 5
            end = start + len(data)
            if end > self.capacity:
                self._overflow(tag, text, data)
                return
            window = self.window
            if tag != self.tag:
                if self.tag:
                    window[self.record + 1 : self.record + 5] = _pack(self.end - self.record - 5)
                self.record = start - 5
                window[start - 5 : start] = _OPEN[tag]
                self.tag = tag
            window[start:end] = data
            self.end = end
            self.head[1] = end

    def _overflow(self, tag, text, data):
        self.flush()
        if HEAD + 5 + len(data) <= self.capacity:
            self.write(tag, text)
            return
        text = data.decode()
        for start in range(0, len(text), MAX_TEXT):
            self._send(self._frame("stream", _stream(tag, text[start : start + MAX_TEXT])), 1)

    def flush(self):
        """Sends what is held back."""
        with self.lock:
            frames = self._held()
            if frames:
                self._send(b"".join(frames), len(frames))

    def send(self, kind, content):
        """Sends a message after all text written before it."""
        self._send_after(self._frame(kind, encode(content)))

    def reply(self, kind, content):
        """Sends a reply whose content is JSON text already, in one write with what is held back."""
        self._send_after(self._frame(kind, content))

    def defer(self, kind, content):
        """Like `send`, but may wait for the next message or text: for what a cell ends with."""
        with self.lock:
            if self.child:
                return
            frame = self._frame(kind, encode(content))
            if self.end != HEAD or self.deferred:
                self.flush()
            self.deferred = frame

    def _send_after(self, frame):
        with self.lock:
            if self.child:
                return
            frames = self._held()
            frames.append(frame)
            self._send(b"".join(frames), len(frames))

    def _frame(self, kind, content):
        body = '{"header":{"msg_type":"%s"},"parent_header":{"msg_id":%s},"content":%s}' % (
            kind,
            self.parent,
            content,
        )
        body = body.encode("utf-8", "replace")
        if len(body) > MAX_FRAME:
            notice = {"text/plain": "<output of %d bytes dropped: too large>" % len(body)}
            return self._frame("display_data", encode({"data": notice, "metadata": {}}))
        return _pack(len(body)) + body

    def _held(self):
        """Takes what is held back, as frames in order."""
        if self.child:
            return []
        frames = []
        if self.deferred:
            frames.append(self.deferred)
            self.deferred = b""
        position, end = HEAD, self.end
        while position < end:
            tag = self.window[position]
            size = _unpack(self.window, position + 1)[0] if position != self.record else 0
            start = position + 5
            position = start + size if size else end
            text = self.window[start:position].decode()
            frames.append(self._frame("stream", _stream(tag, text)))
        self.tag, self.record, self.end = 0, HEAD, HEAD
        return frames

    def _send(self, data, frames):
        # A signal must not raise in the middle of a frame: the handler looks at `sender`.
        self.sender = _thread_id()
        try:
            self.head[1] = HEAD
            self.head[0] = (self.head[0] + frames) & 0xFFFFFFFF
            sent = _os_write(self.fd, data)
            if sent != len(data):
                rest = memoryview(data)
                while sent < len(data):
                    sent += _os_write(self.fd, rest[sent:])
        finally:
            main = self.sender == self.main
            self.sender = 0
        if main and self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt


_OPEN = {tag: bytes([tag]) + _pack(0) for tag in TAGS}


def _stream(tag, text):
    return '{"name":%s,"text":%s}' % (TAGS[tag], _quote(text))


def _write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[_os_write(fd, data) :]


class Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes go to the pipe as they are, after the text before them."""

    def __init__(self, stream):
        self._stream = stream

    def writable(self):
        return True

    def fileno(self):
        return self._stream.fileno()

    def write(self, data):
        self._stream.flush()
        data = memoryview(data).cast("B")
        _write_all(self._stream.fileno(), data)
        return len(data)


class OutStream(io.TextIOBase):
    """`sys.stdout` and `sys.stderr` of a cell."""

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = False
    write_through = False

    def __init__(self, channel, tag, name):
        self._channel, self._tag, self.name = channel, tag, name
        self._write = channel.write
        self.mode = "w"
        self.buffer = Bytes(self)

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        self._write(self._tag, text)
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        # What is in the window is seen within milliseconds, also when a subprocess writes next:
        # the other side looks at the window before it takes from a pipe.
        pass

    def reconfigure(self, **_options):
        """The stream is UTF-8 and unbuffered in effect; there is nothing to change."""

    def close(self):
        # Closing the stream would break every later cell.
        pass

    def fileno(self):
        return self._tag

    def isatty(self):
        return False

    def writable(self):
        return True
