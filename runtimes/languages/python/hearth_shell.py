"""IPython's shell without what costs time: the same cells, names, displays and errors.

A cell that is plain Python takes the short way through `Shell.run`; every other cell (magics, `!`,
`?`, prompts, top-level await, anything a user hooked into) takes IPython's own `run_cell`. The short
way must leave the same state behind: count, In, Out, `_`, `_i`, hooks, last result.
"""

import ast
import asyncio
import codecs
import contextlib
import inspect
import linecache
import os
import re
import subprocess
import sys
import traceback
import types
from binascii import crc32

import IPython
from IPython.core import page
from IPython.core.autocall import ExitAutocall, IPyAutocall
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.events import EventManager, available_events
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import (
    ExecutionInfo,
    ExecutionResult,
    InteractiveShell,
    InteractiveShellABC,
)
from IPython.core.macro import Macro
from IPython.lib import pretty
from traitlets import Type
from traitlets.config import Config

MAX_ERROR_TEXT = 256 << 10
# Files whose frames are never shown; the kernel adds its own.
OWN_FILES = {__file__}

_ansi = re.compile(r"\x1b\[[0-9;]*m")
_first_word = re.compile(r"[^\W\d]\w*")
_info_names = list(inspect.signature(ExecutionInfo.__init__).parameters)[1:]
_only_ast = ast.PyCF_ONLY_AST
_plain_types = frozenset(
    (int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset, type(None))
)
# What makes IPython look twice at a cell that is valid Python (or is no Python at all).
_special = re.compile(r"^$|^[\s%!?/,;>]|\?|\r|\x0c|\bawait\b|\basync\s|create_task|^In \[|\n\.\.\.|\n>>>|\.\.\.:|\n\s*[%!]")


# A cell of one simple statement, for certain: in a compound one `single` would show each value, not the last.
_simple = re.compile(r"[^\n:;]+\n?\Z").match


def _short(text):
    if len(text) <= MAX_ERROR_TEXT:
        return text
    half = MAX_ERROR_TEXT // 2
    return "%s\n… %d characters omitted …\n%s" % (text[:half], len(text) - 2 * half, text[-half:])


class Hook(DisplayHook):
    """The value of a cell, as `execute_result`."""

    def __call__(self, result=None):
        shell = self.shell
        self.check_for_underscore()
        if result is None or self.quiet():
            return
        self._is_active = True
        try:
            data = shell.plain(result)
            metadata = {}
            if data is None:
                data, metadata = self.compute_format_data(result)
            self.update_user_ns(result)
            self.fill_exec_result(result)
            if data:
                count = self.prompt_count
                shell.publish(
                    "execute_result",
                    {"execution_count": count, "data": data, "metadata": metadata or {}},
                )
                if "text/plain" in data:
                    shell.history_manager.output_hist_reprs[count] = data["text/plain"]
        finally:
            self._is_active = False

    def quiet(self):
        inputs = self.shell.history_manager.input_hist_parsed
        return ";" in inputs[-1] and super().quiet() if inputs else False


class Publisher(DisplayPublisher):
    """`display()`, as `display_data`."""

    def _setup_execution_tracking(self):
        pass

    def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **_more):
        self._validate_data(data, metadata)
        content = {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        self.shell.publish("update_display_data" if update else "display_data", content)

    def clear_output(self, wait=False):
        self.shell.publish("clear_output", {"wait": bool(wait)})


class History(HistoryManager):
    """In and Out, in memory only."""

    def store_inputs(self, line_num, source, source_raw=None):
        source_raw = source if source_raw is None else source_raw
        source, source_raw = source.rstrip("\n"), source_raw.rstrip("\n")
        if source_raw.lstrip()[:4] in ("exit", "quit") and self._exit_re.match(source_raw.strip()):
            return
        self.input_hist_parsed.append(source)
        self.input_hist_raw.append(source_raw)
        # Straight into the traits' store: they are text by construction.
        values = self._trait_values
        values["_iii"], values["_ii"], values["_i"] = self._ii, self._i, self._i00
        values["_i00"] = source_raw
        names = {
            "_i": values["_i"],
            "_ii": values["_ii"],
            "_iii": values["_iii"],
            "_i%s" % line_num: source_raw,
        }
        self.shell.user_ns.update(names)
        self.shell.user_ns_hidden.update(names)


class Compiler(CachingCompiler):
    """Names cells as IPython does, by a checksum that costs less than its hash; the number makes names unique."""

    def get_code_name(self, raw_code, transformed_code, number):
        return "<ipython-input-%d-%08x>" % (number, crc32(transformed_code.encode("utf-8", "replace")))


class Exit(ExitAutocall):
    """`exit` and `quit`: end the cell, not the kernel."""

    def __call__(self, *_arguments):
        raise SystemExit(*_arguments)


class Shell(InteractiveShell):
    """The shell of one kernel. `publish(kind, content)` sends a message; `channel` takes the text."""

    compiler_class = Type(Compiler)
    displayhook_class = Type(Hook)
    display_pub_class = Type(Publisher)

    @classmethod
    def make(cls, channel):
        """The process's one shell."""
        config = Config()
        config.HistoryManager.enabled = False
        config.HistoryManager.hist_file = ":memory:"
        config.InteractiveShell.colors = "nocolor" if IPython.version_info[0] >= 9 else "NoColor"
        config.InteractiveShell.xmode = "Context"
        config.InteractiveShell.banner1 = ""
        cls.channel = channel
        cls.error = None
        cls.tracebacks = None
        shell = cls.instance(config=config)
        shell.loop_runner = shell.run_coroutine
        # Held open for good: inside a cell there is no difference, and it saves two changes per cell.
        shell.builtin_trap.__enter__()
        shell.display_trap.__enter__()
        shell.set_hook("show_in_pager", page.as_hook(shell.show_page), 99)
        # IPython 9 counts a cell before it runs, IPython 8 after.
        shell.counts_first = shell.displayhook.prompt_count != shell.execution_count
        # What `%cd` and others keep between sessions: in memory, there is one session.
        shell.db = {}
        shell._standard = shell._hooks_of_input()
        shell.spare_history = History(shell=shell, parent=shell)
        shell.spare_events = EventManager(shell, available_events)
        return shell

    def init_history(self):
        self.history_manager = History(shell=self, parent=self)
        self.configurables.append(self.history_manager)

    def init_virtualenv(self):
        pass

    def init_user_ns(self):
        # The class's default knows IPython's terminal only; `exiter` is read by the base class.
        self.exiter = Exit(self)
        super().init_user_ns()

    # -- messages ---------------------------------------------------------------------------------

    def publish(self, kind, content):
        """Sends an output. What usually ends a cell travels with the reply."""
        if kind == "execute_result":
            self.channel.defer(kind, content)
        else:
            self.channel.send(kind, content)

    def show_page(self, text, start=0, screen_lines=0, pager_cmd=None):
        """The pager of `obj?`: plain text on stdout."""
        if isinstance(text, dict):
            text = text.get("text/plain", "")
        print(_ansi.sub("", text))

    def set_next_input(self, text, replace=False):
        """There is no next input box; the request is dropped."""

    def ask_exit(self):
        """`%exit`: ends the cell, not the kernel."""
        raise SystemExit

    def enable_gui(self, gui=None):
        """No event loop of a window system exists here."""
        if gui not in (None, "inline", "asyncio"):
            raise UsageError("no window system: the %r event loop is not available" % (gui,))

    def system(self, cmd):
        """`!cmd`: output goes through sys.stdout, so that `%%capture` sees it."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        cmd = self.var_expand(cmd, depth=1)
        process = subprocess.Popen(
            cmd, shell=True, executable=os.environ.get("SHELL") or "/bin/sh",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while data := os.read(process.stdout.fileno(), 1 << 15):
                sys.stdout.write(decoder.decode(data))
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
        self.user_ns["_exit_code"] = process.returncode

    system_piped = system

    # -- errors -----------------------------------------------------------------------------------

    def showtraceback(self, *arguments, **options):
        """As IPython's, after telling `inspect` that cells belong to `__main__`.

        Otherwise it compares every loaded module with the cell's name, for every traceback.
        """
        here = os.getcwd() if _exists(".") else "/"
        for name in self.compile._filename_map:
            inspect.modulesbyfile[name] = "__main__"
            inspect.modulesbyfile[os.path.join(here, name)] = "__main__"
        value = (options.get("exc_tuple") or (arguments and arguments[0]) or sys.exc_info())[1]
        if _has_group(value):
            # IPython would print these to stderr and send no error.
            self._showtraceback(type(value), value, self._group_lines(value))
        else:
            super().showtraceback(*arguments, **options)

    def _group_lines(self, value):
        where = value.__traceback__
        while where and where.tb_frame.f_code.co_filename not in self.compile._filename_map:
            where = where.tb_next
        lines = traceback.format_exception(type(value), value, where or value.__traceback__)
        return "".join(lines).rstrip("\n").split("\n")

    def _showtraceback(self, etype, evalue, stb):
        try:
            text = str(evalue)
        except Exception:
            text = "<unprintable %s object>" % etype.__name__
        lines = [_short(_ansi.sub("", line)) for line in stb[:200]]
        content = {"ename": str(etype.__name__), "evalue": _short(text), "traceback": lines}
        self.tracebacks = content
        self.error = content
        self.channel.defer("error", content)

    def show_last_error(self):
        """Reports the last cell's error when IPython printed it without sending it."""
        result = self.last_execution_result
        error = result and (result.error_before_exec or result.error_in_exec)
        error = error or RuntimeError("the cell failed without an error")
        self._showtraceback(type(error), error, [])

    def _format_exception_for_storage(self, exception, *_arguments, **_options):
        return self.tracebacks

    # -- running ----------------------------------------------------------------------------------

    def run_coroutine(self, coroutine):
        """Runs a cell with top-level await. An interrupt cancels it, so that it never goes on later."""
        loop = _event_loop()
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            return loop.run_until_complete(task)

    def should_run_async(self, raw_cell, **options):
        if super().should_run_async(raw_cell, **options):
            return True
        # Plain code that needs a running loop, as it finds one in a notebook.
        return "create_task(" in raw_cell and "asyncio.run(" not in raw_cell

    async def run_code(self, code_obj, result=None, *, async_=False):
        """As IPython's, but SystemExit is an error like others, without advice for a terminal."""
        if not async_:
            return self._exec(code_obj, result)
        old_hook, sys.excepthook = sys.excepthook, self.excepthook
        try:
            await eval(code_obj, self.user_global_ns, self.user_ns)
        except BaseException as error:
            return self._failed(error, result)
        finally:
            sys.excepthook = old_hook
        return False

    def _exec(self, code, result):
        old_hook, sys.excepthook = sys.excepthook, self.excepthook
        self.sys_excepthook = old_hook
        try:
            exec(code, self.user_module.__dict__, self.user_ns)
        except BaseException as error:
            return self._failed(error, result)
        finally:
            sys.excepthook = old_hook
        return False

    def _failed(self, error, result):
        if result is not None:
            result.error_in_exec = error
        # Without the frame that called `exec`: the traceback begins with the cell.
        error.__traceback__ = _of_the_cell(error.__traceback__)
        # The other side may lose patience with code, but not with the report of its end.
        head, before = self.channel.head, self.channel.head[2]
        head[2] = 2
        try:
            if isinstance(error, SystemExit):
                self.showtraceback(exception_only=True)
            elif type(error).__name__ == "BdbQuit":
                pass
            elif isinstance(error, self.custom_exceptions):
                self.CustomTB(type(error), error, error.__traceback__)
            else:
                self.showtraceback(running_compiled_code=True, tb_offset=0)
        finally:
            head[2] = before
        return True

    def _hooks_of_input(self):
        inputs, prefilter = self.input_transformer_manager, self.prefilter_manager
        return [
            len(inputs.cleanup_transforms), len(inputs.line_transforms),
            len(inputs.token_transformers), len(self.input_transformers_post),
            len(prefilter.transformers), len(prefilter.checkers), len(self.ast_transformers),
        ]  # fmt: skip

    def _is_plain(self, cell):
        """Would IPython's transformations leave this cell alone, if it is valid Python?"""
        if _special.search(cell) or self.autocall or self.ast_node_interactivity != "last_expr":
            return False
        if self._hooks_of_input() != self._standard or self.logger.log_active:
            return False
        if "\n" in cell.rstrip("\n"):
            return True
        word = _first_word.match(cell)
        if word is None:
            return True
        word = word.group()
        magics = self.magics_manager.magics
        value = self.user_ns.get(word)
        return not (
            word in magics["line"] or word in magics["cell"] or isinstance(value, (IPyAutocall, Macro))
        )

    def run(self, cell):
        """Runs a cell with history; returns whether it went well."""
        if not self._is_plain(cell):
            return self._run_slowly(cell)
        count = self.execution_count
        text = cell if cell.endswith("\n") else cell + "\n"
        compiler = self.compile
        name = compiler.cache(text, count, raw_code=cell)
        code = tree = None
        # One simple statement needs no tree; what is none after all fails to compile here.
        if _simple(cell):
            try:
                # IPython's compiler, which remembers what a cell imports from `__future__`.
                code = compiler(text, name, "single")
            except Exception:
                code = None
        if code is None:
            try:
                tree = compile(text, name, "exec", compiler.flags | _only_ast, True)
            except Exception:
                tree = None
        if code is None and tree is None:
            linecache.cache.pop(name, None)
            compiler._filename_map.pop(name, None)
            return self._run_slowly(cell)
        info = _execution_info(cell, text)
        result = ExecutionResult(info)
        result.execution_count = count
        if self.counts_first:
            self.execution_count = count + 1
        try:
            callbacks = self.events.callbacks
            if callbacks["pre_execute"]:
                self.events.trigger("pre_execute")
            if callbacks["pre_run_cell"]:
                self.events.trigger("pre_run_cell", info)
            self.history_manager.store_inputs(count, text, cell)
            hook = self.displayhook
            sys.displayhook = hook
            hook.exec_result = result
            failed = self._exec(code, result) if tree is None else self._run_tree(tree, name, result)
            self.last_execution_succeeded = not failed
            self.last_execution_result = result
            hook.exec_result = None
        finally:
            self.execution_count = count + 1
            if callbacks["post_execute"]:
                self.events.trigger("post_execute")
            if callbacks["post_run_cell"]:
                self.events.trigger("post_run_cell", result)
        return result.error_before_exec is None and result.error_in_exec is None

    def run_cell(self, *arguments, **options):
        """A cell run by a cell: its failure is shown, but is not the failure of the outer one."""
        before = self.error
        try:
            return super().run_cell(*arguments, **options)
        finally:
            self.error = before

    def _run_slowly(self, cell):
        result = super().run_cell(cell, store_history=True)
        return result.error_before_exec is None and result.error_in_exec is None

    def _run_tree(self, tree, name, result):
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        compiler = self.compile
        try:
            if body:
                try:
                    codes = [compiler(tree, name, "exec")]
                except SyntaxError:
                    # What only the compiler finds, such as a `return` outside a function, comes after the
                    # statements before it have run.
                    codes = (compiler(ast.Module([node], []), name, "exec") for node in body)
                for code in codes:
                    if self._exec(code, result):
                        return True
            if last is not None:
                code = compiler(ast.Interactive([last]), name, "single")
                return self._exec(code, result)
        except BaseException as error:
            result.error_before_exec = error
            self.showtraceback()
            return True
        return False

    # -- displays ---------------------------------------------------------------------------------

    def plain(self, value):
        """The bundle of a value of a built-in type, or None when a formatter might add to it."""
        kind = type(value)
        if kind not in _plain_types:
            return None
        formatter = self.display_formatter
        key = (kind.__module__, kind.__name__)
        others = [formatter.ipython_display_formatter, formatter.mimebundle_formatter]
        for mime, other in formatter.formatters.items():
            if mime == "text/plain":
                text = other
            else:
                others.append(other)
        for other in others:
            values = other._trait_values
            printers = values.get("type_printers")
            if printers and (kind in printers or object in printers):
                return None
            if values.get("singleton_printers") or key in values.get("deferred_printers", ()):
                return None
        if text.type_printers.get(kind) is pretty._repr_pprint and not text.singleton_printers.get(id(value)):
            return {"text/plain": repr(value)}
        return {"text/plain": text(value)}

    # -- rehearsal --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self, hooks):
        """Cells run in here leave no trace in the user's namespace, history, counters or caches.

        `hooks`: whether hooks on events (the user's, matplotlib's) stay in force.
        """
        display = self.displayhook
        kept = {
            name: getattr(self, name)
            for name in (
                "user_module", "user_ns", "user_ns_hidden", "history_manager", "execution_count",
                "last_execution_result", "last_execution_succeeded", "compile", "tracebacks",
                "events", "_last_input_line",
            )
            if hasattr(self, name)
        }  # fmt: skip
        unders = (display._, display.__, display.___)
        last = {n: getattr(sys, n) for n in dir(sys) if n.startswith("last_")}
        self.user_module = types.ModuleType("__main__")
        self.user_ns = self.user_module.__dict__
        self.user_ns.update(__builtin__=sys.modules["builtins"], __builtins__=sys.modules["builtins"])
        self.user_ns_hidden = {}
        history = self.history_manager = self.spare_history
        history.input_hist_parsed[:] = history.input_hist_raw[:] = [""]
        history.output_hist.clear()
        self.compile = Compiler()
        if not hooks:
            self.events = self.spare_events
        display._, display.__, display.___ = "", "", ""
        self.user_ns.update({"_": "", "__": "", "___": "", "_oh": history.output_hist, "get_ipython": self.get_ipython})
        streams = (sys.stdout, sys.stderr, sys.displayhook)
        sys.stdout, sys.stderr = self.streams
        try:
            yield
        finally:
            sys.stdout, sys.stderr, sys.displayhook = streams
            names = set(self.compile._filename_map) - set(kept["compile"]._filename_map)
            for name in names:
                linecache.cache.pop(name, None)
                inspect.modulesbyfile.pop(name, None)
            for name, value in kept.items():
                setattr(self, name, value)
            display._, display.__, display.___ = unders
            for name in [n for n in dir(sys) if n.startswith("last_")]:
                if name not in last:
                    delattr(sys, name)
            for name, value in last.items():
                setattr(sys, name, value)


InteractiveShellABC.register(Shell)


def _of_the_cell(where):
    """A traceback without the kernel's own frames, at its two ends."""
    where = where and where.tb_next
    step = where
    while step and step.tb_next:
        if step.tb_next.tb_frame.f_code.co_filename in OWN_FILES:
            step.tb_next = None
            break
        step = step.tb_next
    return where


def _has_group(value):
    for _ in range(64):
        if value is None or isinstance(value, BaseExceptionGroup):
            break
        value = value.__context__
    return value is not None and isinstance(value, BaseExceptionGroup)


def _exists(path):
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def _event_loop():
    try:
        from IPython.core.async_helpers import get_asyncio_loop

        return get_asyncio_loop()
    except ImportError:
        return asyncio.get_event_loop()


def _execution_info(cell, transformed):
    info = ExecutionInfo.__new__(ExecutionInfo)
    info.raw_cell = cell
    info.store_history = True
    info.silent = False
    info.shell_futures = True
    info.cell_id = None
    if "cell_meta" in _info_names:
        info.cell_meta = None
    if "transformed_cell" in _info_names:
        info.transformed_cell = transformed
    return info
