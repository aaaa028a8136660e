"""`mricodec`: the commands, each imported when it is called.

Exit codes: 0 good, 1 bad data or a failing machine, 2 wrong usage.
"""

from __future__ import annotations

import gc
import importlib
import signal
from typing import Any

import click

from . import console

# Objects between two garbage collections: imports make many objects and hardly any garbage.
GARBAGE_THRESHOLD = 100_000

# Name -> module, function, and the line in --help; importing a command costs up to two seconds.
_COMMANDS = {
    "augment": ("study", "augment", "Pictures between or beyond training scans."),
    "batch": ("batch", "batch", "Encode or decode a tree of scans."),
    "cache": ("train", "cache", "Pack a folder of scans into one file for training."),
    "compare": ("inspect", "compare", "PSNR, SSIM and largest error of a decoded scan."),
    "decode": ("decode", "decode", "Restore scans from streams, or a part of one."),
    "encode": ("encode", "encode", "Compress scans and DICOM series."),
    "info": ("inspect", "info", "What a stream holds."),
    "interpolate": ("study", "interpolate", "Mix heads through an autoencoder."),
    "rd-curve": ("evaluate", "rd_curve", "Rate-distortion curves of scans and other codecs."),
    "study": ("study", "study", "The representation study."),
    "train": ("train", "train", "Train a model."),
    "unwrap": ("dicom", "unwrap", "Take a stream out of a DICOM object."),
    "verify": ("inspect", "verify", "Check the checksums of streams."),
    "wrap": ("dicom", "wrap", "Put a stream into a DICOM object for a PACS."),
}


class _Commands(click.Group):
    """The commands of `_COMMANDS`; every error is one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, function, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f".{module}", __package__), function
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in sorted(_COMMANDS.items())])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with console.one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with console.one_line_errors():
            return super().invoke(ctx)


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from mricodec.codec.release import release

        click.echo(f"mricodec {release()}")
        context.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'-' is stdin or stdout.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def cli() -> None:
    """Compress and restore MRI scans."""


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """The console script."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    for name in ("SIGTERM", "SIGHUP"):  # They end the program as Ctrl-C does: it cleans up.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    code = 0
    try:
        cli(prog_name="mricodec")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    console.exit_process(code)
