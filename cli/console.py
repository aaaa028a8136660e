"""What all commands share: errors of one line, common options, progress bars, tables, JSON.

Results go to stdout; everything else (progress, notes, errors) goes to stderr through `say`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from mricodec.bitstream.errors import error_text

# Seconds of work before a progress bar appears: what is finished by then needs none.
BAR_DELAY = 1.0
# Seconds between two drawings of a progress bar.
BAR_INTERVAL = 0.2
# Columns of the bar between its brackets.
BAR_COLUMNS = 24


class OneLineError(click.ClickException):
    """`Error: MESSAGE` in one line, for bad data."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()).removesuffix("."))


class WrongUsage(OneLineError):
    """The same for wrong usage."""

    exit_code = 2


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn every error that a user can cause into a `OneLineError`; faults of the program pass."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2: it shows the help.
            raise
        raise WrongUsage(error.format_message()) from error
    except (OSError, ValueError, MemoryError, ImportError) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise
        raise _one_line(error) from error
    except RuntimeError as error:
        # torch reports a lack of memory as RuntimeError, of which click's signals are a subclass.
        if "memory" not in str(error):
            raise
        raise _one_line(MemoryError(str(error))) from error


def _one_line(error: Exception) -> OneLineError:
    from mricodec.bitstream.errors import FormatError
    from mricodec.models.extras import MissingExtra

    message = error_text(error)
    if isinstance(error, MemoryError):
        message = (
            f"not enough memory ({message}): close other programs, "
            "or decode a part with --slices or --volumes"
        )
    elif isinstance(error, ImportError) and not isinstance(error, MissingExtra):
        message = f"{message}: reinstall with 'pip install mricodec'"
    is_usage = isinstance(error, (ValueError, MissingExtra)) and not isinstance(error, FormatError)
    return WrongUsage(message) if is_usage else OneLineError(message)


# Options that several commands have. ------------------------------------------------------------


def _set_threads(_: click.Context, __: click.Parameter, threads: int | None) -> None:
    """Limit the threads before numpy and torch are imported, which read these variables then."""
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)


def _start_log(context: click.Context, _: click.Parameter, verbose: bool) -> bool:
    """Show what the library logs while the command runs."""
    if verbose:
        import logging

        logger = logging.getLogger("mricodec")
        handler = logging.StreamHandler(_LogStream())
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

        def end() -> None:
            logger.removeHandler(handler)
            logger.setLevel(before)

        context.call_on_close(end)
    return verbose


class _LogStream:
    """A text stream whose lines don't break a progress bar."""

    def write(self, text: str) -> None:
        say(text.rstrip("\n"))

    def flush(self) -> None:
        pass


force_option = click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=_start_log,
    help="Say more about the result, and show the log.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    callback=_set_threads,
    expose_value=False,
    help="CPU threads; default: all cores.",
)


class ModelType(click.ParamType):  # type: ignore[type-arg]
    """The name of a shipped model, or a weights file."""

    name = "NAME | FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name or path; a usage error if there is no such model or file."""
        from mricodec import models
        from mricodec.models.weights_file import is_file_name

        if is_file_name(value):
            return click.Path(exists=True, dir_okay=False).convert(value, param, ctx)
        if value not in models.names():
            names = ", ".join(models.names())
            self.fail(f"expected {names}, or a FILE.safetensors, found {value!r}", param, ctx)
        return value


class ModelOption(click.Option):
    """--model of an encoder; its help lists the models, which only --help has to load."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option, and the names of the models."""
        from mricodec import models

        default, *others = models.names()
        self.help = (
            f"{default}, for research: {', '.join(others)}, or a FILE.safetensors of your own "
            "training."
        )
        return super().get_help_record(ctx)


def model_file_option(command: Callable[..., None]) -> Callable[..., None]:
    """--model of a decoder."""
    return click.option(
        "--model",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Weights file (.safetensors) of a model that is not shipped; files in the folders of "
        "MRICODEC_MODELS need not be named.",
    )(command)


def coding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that encodes or decodes."""
    for option in (verbose_option, quiet_option, device_option, threads_option):
        command = option(command)
    return command


# Progress and messages on stderr. ---------------------------------------------------------------

_visible_bar: Bar | None = None
# Held while something is printed on stderr, where a bar is redrawn by a thread of its own.
_stderr_lock = threading.RLock()


def say(text: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    with _stderr_lock:
        if _visible_bar is not None:
            _visible_bar.clear()
        click.echo(text, err=True)


class Bar:
    """A progress bar: `label   42 %  [####....]  12.3 MB/s  0:07 left`.

    Only on a terminal, and only for what takes longer than `BAR_DELAY`. `size` is the number of
    bytes that the work takes in, from which the speed comes; None where it is not known. A thread
    draws it, so that the time goes on where updates are far between; it disappears at 100 %.
    """

    def __init__(self, label: str, *, quiet: bool = False, size: float | None = None) -> None:
        self._label = label
        self._size = size
        self._enabled = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._start = self._updated_at = time.monotonic()
        self._fraction, self._detail = 0.0, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_ended, daemon=True)

    def __enter__(self) -> Bar:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._enabled:
            self._thread.join()
        self.clear()

    def update(self, fraction: float, detail: str = "") -> None:
        """Set the fraction done; `detail` stands behind the label."""
        self._fraction, self._detail = min(max(fraction, 0.0), 1.0), detail
        self._updated_at = time.monotonic()

    def count(self, done: int, total: int, detail: str = "") -> None:
        """Set the number of items done, of `total`."""
        numbers = f"{done} of {total}"
        self.update(done / total if total else 1.0, f"{numbers}, {detail}" if detail else numbers)

    def clear(self) -> None:
        """Erase the bar until it is drawn again."""
        global _visible_bar
        with _stderr_lock:
            if _visible_bar is self:
                click.echo("\r\033[K", nl=False, err=True)
                _visible_bar = None

    def _draw_until_ended(self) -> None:
        global _visible_bar
        seconds = BAR_DELAY
        while not self._ended.wait(seconds):
            seconds = BAR_INTERVAL
            if self._fraction >= 1:
                self.clear()
                continue
            with _stderr_lock:
                _visible_bar = self
                click.echo(f"\r\033[K{self.line()}", nl=False, err=True)

    def line(self) -> str:
        """The bar as it is now, within the width of the terminal."""
        now = time.monotonic()
        fraction, detail = self._fraction, self._detail
        room = shutil.get_terminal_size().columns - 1
        columns = min(BAR_COLUMNS, room // 5)
        filled = round(fraction * columns)
        parts = [f"{100 * fraction:3.0f} %", "[" + "#" * filled + "." * (columns - filled) + "]"]
        seconds = self._updated_at - self._start
        if self._size and fraction > 0 and seconds > 0:
            parts.append(f"{byte_count(self._size * fraction / seconds)}/s")
        if 0 < fraction < 1:
            left = seconds * (1 - fraction) / fraction - (now - self._updated_at)
            parts.append(f"{duration(max(left, 0.0))} left")
        else:
            parts.append(duration(now - self._start))
        head, tail = f"{self._label}: {detail}" if detail else self._label, "  ".join(parts)
        room -= len(tail) + 2
        if len(head) > room:
            head = head[: max(room - 3, 0)] + "..."
        return f"{head}  {tail}"[: shutil.get_terminal_size().columns - 1]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:07, 12:30, 1:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# Results. ---------------------------------------------------------------------------------------


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, the values one below the other."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Cells of equal rows; the first column is flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def json_text(value: Any) -> str:
    """JSON, in which numbers that it can't hold (infinities, NaN) are null."""
    return json.dumps(_finite(value), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def byte_count(count: float) -> str:
    """Three digits and a decimal unit: 163 kB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


# The process. -----------------------------------------------------------------------------------

# Whether the process may end without taking the interpreter apart, see `hurry`.
_at_once = False


def hurry() -> None:
    """Start without the threads of numpy's linear algebra, which no coding is faster with, and end
    without cleaning up, for which torch takes most of a second."""
    global _at_once
    _at_once = True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def exit_process(code: int) -> None:
    """Flush the output and end; a full device or a closed pipe gives exit code 1, no traceback."""
    at_once = _at_once
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError) as error:
        if code == 0 and getattr(error, "errno", None) != errno.EPIPE:
            with contextlib.suppress(OSError, ValueError):
                click.echo(f"Error: stdout: {error_text(error)}", err=True)
        code, at_once = code or 1, True
    if at_once:
        os._exit(code)
    sys.exit(code)
