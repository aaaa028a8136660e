"""`mricodec encode`, `decode`, `info` and `verify`; the other commands are imported when they are called.

Exit codes: 0 good, 1 bad data or a failing machine, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import importlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

if TYPE_CHECKING:
    from mricodec.codec import EncodeReport, Finding, StreamInfo

PROGRESS_AFTER = 1.0  # seconds
GARBAGE = 100_000  # objects between collections: imports make many, and hardly any garbage
_at_once = False  # see `_end_at_once`

# name -> (module:function, the line in --help); importing them costs up to two seconds
_LAZY = {
    "augment": ("mricodec.cli.study:augment", "Pictures between or beyond training scans."),
    "batch": ("mricodec.cli.batch:batch", "Encode or decode a tree of scans."),
    "cache": ("mricodec.cli.train:cache", "Pack a folder of scans into one file for training."),
    "compare": ("mricodec.cli.evaluate:compare", "PSNR, SSIM and largest error of a decoded scan."),
    "rd-curve": (
        "mricodec.cli.evaluate:rd_curve",
        "Rate-distortion curves of scans, beside other codecs.",
    ),
    "interpolate": ("mricodec.cli.study:interpolate", "Mix heads through an autoencoder."),
    "study": ("mricodec.cli.study:study", "The representation study."),
    "train": ("mricodec.cli.train:train", "Train a model."),
    "unwrap": ("mricodec.cli.series:unwrap", "Take a stream out of a DICOM object."),
    "wrap": ("mricodec.cli.series:wrap", "Put a stream into a DICOM object for a PACS."),
}


class _WrongUsage(click.ClickException):
    """One line, without the usage of the command."""

    exit_code = 2


class _Commands(click.Group):
    """Commands of this file, and those of `_LAZY`. Errors become one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, _, function = _LAZY[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {name: line for name, (_, line) in _LAZY.items()}
        lines.update(
            (name, command.get_short_help_str(90)) for name, command in self.commands.items()
        )
        with formatter.section("Commands"):
            formatter.write_dl(sorted(lines.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "mricodec"
            raise _WrongUsage(f"{error.format_message()} (see '{command} --help')") from error
        except (OSError, ValueError, MemoryError, ImportError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            raise _failure(error) from error
        except (
            RuntimeError
        ) as error:  # torch says so that memory is short; signals of click are of the type too
            if "memory" not in str(error):
                raise
            raise _failure(MemoryError(str(error))) from error


def _failure(error: Exception) -> click.ClickException:
    from mricodec.bitstream.errors import FormatError

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        message = f"not enough memory ({message}): close other programs, or take a part with --slices or --volumes"
    elif isinstance(error, ImportError):
        message = f"{message}: reinstall with 'pip install mricodec'"
    if isinstance(error, ValueError) and not isinstance(error, FormatError):
        return _WrongUsage(message)
    return click.ClickException(message)


class _RangeType(click.ParamType):  # type: ignore[type-arg]
    name = "a:b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, slice):
            return value
        start, colon, stop = str(value).partition(":")
        try:
            if not colon:
                raise ValueError
            return slice(int(start) if start else None, int(stop) if stop else None)
        except ValueError:
            self.fail(
                f"expected a:b with whole numbers (from a, up to but not including b), found {value!r}",
                param,
            )


_SOURCE = click.Path(exists=True, allow_dash=True)
_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True)
_OUTPUT = click.Path(dir_okay=False, allow_dash=True)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that codes."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Say more about the result."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="cpu, cuda, ...; auto: a GPU where there is one.",
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores."
        ),
    ):
        command = option(command)
    return command


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from mricodec.codec.version import release

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


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=_SOURCE, metavar="SCAN | DICOM...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(allow_dash=True),
    help="The stream to write (.mrc); a folder for several DICOM series.",
)
@click.option(
    "--quality",
    type=click.FloatRange(0, 100),
    help="Fidelity relative to the scan's noise; default: 50, below it.",
)
@click.option(
    "--psnr",
    type=click.FloatRange(0, min_open=True),
    help="Instead of --quality: PSNR in dB, within 0.1.",
)
@click.option(
    "--bpv",
    type=click.FloatRange(0, min_open=True),
    help="Instead: bits per voxel of the file, within 2 %.",
)
@click.option(
    "--ratio",
    type=click.FloatRange(0, min_open=True),
    help="Instead: stored voxels over file, within 2 %.",
)
@click.option("--lossless", is_flag=True, help="Restore every bit.")
@click.option(
    "--max-error",
    help="No voxel differs by more: stored units, or a part of the noise, like 0.5sigma.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="With these two: a lossy layer that decodes alone, then the rest.",
)
@click.option(
    "--effort", type=click.Choice(("fast", "default", "high")), default="default", show_default=True,
    help="How long to search for a smaller file; decoding is the same.",
)  # fmt: skip
@click.option(
    "--no-gzip",
    is_flag=True,
    help="Do not find out how to make the identical .nii.gz again: faster.",
)
@click.option(
    "--model",
    help="default, or for research: hyperprior, factorized, cnn8, cnn16, cnn32, unet, unet-2level, vae.",
)
@click.option(
    "--deidentify",
    is_flag=True,
    help="Take identities out of the headers (DICOM PS3.15 basic profile).",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@_common
def encode(
    paths: tuple[str, ...],
    output: str,
    quality: float | None,
    psnr: float | None,
    bpv: float | None,
    ratio: float | None,
    lossless: bool,
    max_error: str | None,
    layers: bool,
    effort: Literal["fast", "default", "high"],
    no_gzip: bool,
    model: str | None,
    deidentify: bool,
    force: bool,
    threads: int | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compress SCAN (.nii, .nii.gz, .hdr/.img, .mgz), or DICOM series: folders and files."""
    exact = "--lossless" if lossless else "--max-error"
    if (
        (lossless or max_error is not None)
        and not layers
        and (quality is not None or model is not None)
    ):
        raise _WrongUsage(f"{exact} takes neither --quality nor --model, but with --layers")
    if layers and not lossless and max_error is None:
        raise _WrongUsage("--layers goes with --lossless or --max-error")
    if lossless and max_error is not None and not layers:
        raise _WrongUsage("--lossless and --max-error go together only with --layers")
    finer = exact if lossless or max_error is not None else None
    given = {
        "--quality": None if layers else quality,
        "--psnr": psnr,
        "--bpv": bpv,
        "--ratio": ratio,
    }
    named = [
        *([finer] if finer else []),
        *(name for name, value in given.items() if value is not None),
    ]
    if len(named) > 1:
        raise _WrongUsage(f"expected one of {' and '.join(named)}; leave out the rest")
    _set_threads(threads)
    from . import series

    _end_at_once()
    scan = paths[0]
    dicom = series.is_series(paths)
    if not dicom:
        _check_output(output, scan, force)
    from mricodec import codec

    start = time.perf_counter()
    remover = codec.Deidentifier() if deidentify else None
    cleaned_here = None if dicom else remover
    encoder = codec.Encoder(
        quality=quality, psnr=psnr, bpv=bpv, ratio=ratio, lossless=lossless, max_error=max_error, layers=layers,
        effort=effort, gzip=not no_gzip, model=model, device=device, deidentify=cleaned_here,
    )  # fmt: skip
    if dicom:
        series.encode(paths, output, encoder, remover, force=force, quiet=quiet, verbose=verbose)
        return
    with _input(scan) as source, _output(output) as out, _progress("encode", quiet) as progress:
        report = encoder.encode_file(source, out, progress=progress)
    if report.reason is not None:
        click.echo(f"{scan}: coded without loss: {report.reason}", err=True)
    if report.missed is not None:
        click.echo(f"{scan}: {report.missed}", err=True)
    if report.no_layers is not None:
        click.echo(f"{scan}: without layers: {report.no_layers}", err=True)
    if not quiet:
        click.echo(f"{scan} -> {output}: {_summary(report, time.perf_counter() - start)}", err=True)
        if verbose and report.fidelity is not None:
            click.echo(_fidelity_line(report), err=True)


@cli.command()
@click.argument("stream", type=_INPUT)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(allow_dash=True),
    help="The scan to write: .nii, .nii.gz, or .hdr for a pair; of a DICOM series, a folder for its files.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["dicom", "nifti"]),
    help="Of a DICOM series; default: by the name of the output.",
)
@click.option("--slices", type=_RangeType(), help="Only these slices of the third axis.")
@click.option("--volumes", type=_RangeType(), help="Only these volumes of a 4-D scan.")
@click.option(
    "--layer",
    type=click.IntRange(min=1),
    help="Only so many layers of a stream with layers; 1: the coarsest.",
)
@click.option(
    "--preview",
    is_flag=True,
    help="The scan with a quarter of the resolution of its slices, quickly.",
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Of a damaged stream write what is good, zeros for the rest; exits 1.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@_common
def decode(
    stream: str,
    output: str,
    form: str | None,
    slices: slice | None,
    volumes: slice | None,
    layer: int | None,
    preview: bool,
    salvage: bool,
    force: bool,
    threads: int | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Restore the scan from STREAM, or a part of it."""
    _set_threads(threads)
    _end_at_once()
    from . import series

    if series.decodes_to_files(stream, output, form):
        if slices is not None or volumes is not None:
            raise _WrongUsage(
                "--slices and --volumes need --format nifti: the files of a series are restored as a whole"
            )
        series.decode(stream, output, device=device, force=force, quiet=quiet)
        return
    _check_output(output, stream, force)
    from mricodec import codec

    if preview and (slices is not None or volumes is not None or salvage):
        raise _WrongUsage("--preview takes neither --slices nor --volumes nor --salvage")
    start = time.perf_counter()
    decoder = codec.Decoder(device=device)
    bad: list[str] = []
    with (
        warnings.catch_warnings(record=True) as caught,
        naming(stream),
        _input(stream) as source,
        _output(output) as out,
        _progress("decode", quiet) as progress,
    ):
        warnings.simplefilter("always", codec.GzipDiffers)
        info = decoder.decode_file(
            source,
            out,
            slices=slices,
            volumes=volumes,
            layer=layer,
            preview=preview,
            salvage=bad.append if salvage else None,
            progress=progress,
        )
        if info.files and slices is None and volumes is None and layer is None and not preview:
            series.further_stacks(stream, output, decoder.decode_file, force=force)
    for line in [f"{stream}: lost: {reason}" for reason in bad] + [
        str(warning.message) for warning in caught
    ]:
        click.echo(line, err=True)
    if not quiet:
        part = (
            "a preview of "
            if preview
            else ""
            if slices is None and volumes is None
            else "a part of "
        )
        size = f"{_shape(info)} {info.dtype}, {_bytes(info.original_bytes)}"
        click.echo(
            f"{stream} -> {output}: {part}{size}, {time.perf_counter() - start:.1f} s", err=True
        )
        if verbose:
            click.echo(_table(_rows(info)), err=True)
    if bad:
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("stream", type=_INPUT)
@click.option(
    "--phi", is_flag=True, help="What it says, beside the voxels, that may identify a person."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(stream: str, phi: bool, as_json: bool) -> None:
    """What STREAM holds."""
    _start_quickly()
    from mricodec import codec

    with naming(stream), _input(stream) as source:
        if phi:
            _show_phi(codec.identifying(source), as_json)
            return
        found = codec.info(source)
    click.echo(_json(found) if as_json else _table(_rows(found)))


@cli.command()
@click.argument("streams", nargs=-1, required=True, type=_INPUT)
@click.option("-t", "--deep", is_flag=True, help="Decode, and compare the digest of the result.")
@_common
def verify(
    streams: tuple[str, ...],
    deep: bool,
    threads: int | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check the checksums of STREAMS."""
    _set_threads(threads)
    if not deep:
        _start_quickly()
    from mricodec import codec

    bad = 0
    for stream in streams:
        try:
            with _input(stream) as source, _progress(f"verify {stream}", quiet) as progress:
                found = codec.verify(source, deep=deep, device=device, progress=progress)
        except codec.FormatError as error:
            bad += 1
            click.echo(f"{_stream_name(stream)}: {error}", err=True)
            continue
        if not quiet:
            checked = "checksums"
            if deep:
                rounding = "decoded; not compared, as its samples may differ by rounding"
                checked = "decoded and compared" if found.exact else rounding
            click.echo(f"{stream}: good ({checked})")
            if verbose:
                click.echo(_table(_rows(found)))
    if bad:
        raise click.exceptions.Exit(1)


def main() -> None:
    """The console script."""
    gc.set_threshold(GARBAGE)
    code = 0
    try:
        cli(prog_name="mricodec")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    at_once = _at_once
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (
        OSError,
        ValueError,
    ) as error:  # a full device, a closed pipe: Python would end with 120 and a traceback
        if code == 0 and getattr(error, "errno", None) != errno.EPIPE:
            with contextlib.suppress(OSError, ValueError):
                click.echo(f"Error: stdout: {getattr(error, 'strerror', None) or error}", err=True)
        code, at_once = code or 1, True
    if at_once:
        os._exit(code)
    sys.exit(code)


def _check_output(output: str, source: str, force: bool) -> None:
    """Either may name a pair, which is two files."""
    from mricodec.codec.formats.nifti import pair_paths

    if output == "-":
        return
    if not output:
        raise _WrongUsage("-o: expected the name of the output, found nothing")
    path = Path(output)
    if path.is_dir():
        raise _WrongUsage(f"{path} is a directory, expected the name of a file")
    if not path.parent.is_dir():
        raise _WrongUsage(f"{path.parent}: no such folder for the output; make it first")
    inputs = (
        []
        if source == "-"
        else [file for file in pair_paths(Path(source)) or [Path(source)] if file.exists()]
    )
    for file in pair_paths(path) or [path]:
        if file.exists() and any(file.samefile(other) for other in inputs):
            raise _WrongUsage(f"{file} is the input too; choose another name")
        if file.is_file() and not force:
            raise _WrongUsage(f"{file} exists; use --force to overwrite it")


def _set_threads(threads: int | None) -> None:
    """Before numpy and torch are imported, which read it then."""
    if threads is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _end_at_once() -> None:
    """At the end of the command nothing is taken apart: files are closed by then, and torch takes most of a second."""
    global _at_once
    _at_once = True


def _start_quickly() -> None:
    """Import what reads streams, for what takes no longer: numpy without threads."""
    _end_at_once()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    importlib.import_module("mricodec.codec")


@contextlib.contextmanager
def _input(name: str) -> Iterator[str | BinaryIO]:
    if name != "-":
        yield name
        return
    if sys.stdin is None:
        raise _WrongUsage("-: expected an open stdin, found it closed")
    with click.open_file("-", "rb") as file:
        yield file  # type: ignore[misc]


@contextlib.contextmanager
def _output(name: str) -> Iterator[str | BinaryIO]:
    if name != "-":
        yield name
        return
    from mricodec.codec.atomic import named_errors

    if sys.stdout is None:
        raise _WrongUsage("-: expected an open stdout, found it closed")
    with click.open_file("-", "wb") as file, named_errors("stdout"):
        yield file  # type: ignore[misc]
        file.flush()


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of the stream in front of what is wrong with it."""
    from mricodec.bitstream.errors import FormatError

    try:
        yield
    except FormatError as error:
        raise type(error)(f"{_stream_name(name)}: {error}") from error


def _stream_name(name: str) -> str:
    return "stdin" if name == "-" else name


@contextlib.contextmanager
def _progress(label: str, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """On a terminal, and only for what takes long."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()
    shown = False

    def show(done: float) -> None:
        nonlocal shown
        if time.monotonic() - start > PROGRESS_AFTER:
            click.echo(f"\r{label} {done:4.0%} ", nl=False, err=True)
            shown = True

    try:
        yield show
    finally:
        if shown:
            click.echo("\r\033[K", nl=False, err=True)


def _summary(report: EncodeReport, seconds: float) -> str:
    parts = [
        f"{_bytes(report.original_bytes)} -> {_bytes(report.stream_bytes)}",
        f"ratio {report.ratio:.2f}",
        report.mode if report.model is None else f"{report.mode} ({report.model})",
    ]
    if report.fidelity is not None:
        found = report.fidelity
        noise = (
            f", RMSE {found.rmse / found.sigma_hat:.2f} of the noise" if found.sigma_hat > 0 else ""
        )
        parts.append(f"PSNR {found.psnr:.1f} dB{noise}")
    if report.max_error is not None:
        parts[2] = f"every voxel within {report.max_error:.4g}"
    if report.layers:
        parts.append(f"with layers ({', '.join(report.layers)})")
    if report.gzip is not None:
        parts.append(
            f"the .nii.gz comes back ({report.gzip})"
            if report.gzip
            else "only the .nii inside comes back"
        )
    return ", ".join([*parts, f"{seconds:.1f} s"])


def _fidelity_line(report: EncodeReport) -> str:
    assert report.fidelity is not None
    found = report.fidelity
    return (
        f"noise {found.sigma_hat:.4g}, step {found.step:.4g}, RMSE {found.rmse:.4g}, "
        f"largest error {found.max_error:.4g} stored units; {report.bits_per_voxel:.3f} bits per voxel"
    )


def _model_name(info: StreamInfo) -> str | None:
    from mricodec import codec

    return codec.model_name(info.model_id) if info.model_id else None


def _rows(info: StreamInfo) -> list[tuple[str, str]]:
    k, j, i = info.spacing_mm
    rows = [
        ("shape", f"{_shape(info)} (i x j x k ...)" if info.slabs else "no voxels are coded"),
        ("spacing", f"{i:.4g} x {j:.4g} x {k:.4g} mm"),
        ("type", info.dtype + (", big-endian" if info.big_endian else "")),
        ("mode", f"{info.mode} ({info.coder})"),
    ]
    if info.files:
        rows.append(("files", f"{info.files}, a DICOM series"))
    if info.max_error is not None:
        rows.append(("bound", f"every voxel within {info.max_error:.6g} stored units"))
    if info.layers:
        rows.append(("layers", ", ".join((*info.layers, info.mode))))
    if info.gzip is not None:
        rows.append((".nii.gz", f"made again ({info.gzip})"))
    if info.preview:
        rows.append(("preview", "decodes alone"))
    if info.model_id:
        rows.append(("model", f"{_model_name(info) or 'unknown'} ({info.model_id})"))
    if info.target is not None:
        rows.append(("asked for", str(info.target)))
    found = info.fidelity
    if found is not None:
        rows += [
            ("noise", f"{found.sigma_hat:.4g} stored units"),
            ("step", f"{found.step:.4g} stored units"),
            ("RMSE", f"{found.rmse:.4g} stored units" + _of_noise(found.rmse, found.sigma_hat)),
            ("largest error", f"{found.max_error:.4g} stored units"),
            ("PSNR", f"{found.psnr:.2f} dB"),
        ]
        if not info.exact:
            rows.append(("samples", "may differ by rounding from machine to machine"))
    rows += [
        ("size", f"{info.original_bytes} -> {info.stream_bytes} bytes"),
        ("ratio", f"{info.ratio:.2f} ({info.bits_per_voxel:.3f} bits per voxel)"),
        ("slabs", f"{info.slabs}, of up to {info.slab_slices} slices along {info.slab_axis}"),
    ]
    rows += [(f"section {name}", f"{size} bytes") for name, size in info.sections]
    return [*rows, ("SHA-256", info.sha256)]


def _show_phi(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        return
    rows = []
    for finding in findings:
        more = f", ... ({finding.count} in all)" if finding.count > len(finding.values) else ""
        rows.append((finding.name, ", ".join(finding.values) + more))
    click.echo(_table(rows) if rows else "nothing found that identifies")


def _of_noise(rmse: float, sigma: float) -> str:
    return f" = {rmse / sigma:.2f} of the noise" if sigma > 0 else ""


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _json(info: StreamInfo) -> str:
    found = {
        **dataclasses.asdict(info),
        "model": _model_name(info),
        "sections": dict(info.sections),
        "ratio": info.ratio,
        "bits_per_voxel": info.bits_per_voxel,
    }
    if info.fidelity is not None:
        values = {**found["fidelity"], "psnr": info.fidelity.psnr}
        found["fidelity"] = {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
    return json.dumps(found, indent=2)


def _shape(info: StreamInfo) -> str:
    return "x".join(str(n) for n in info.shape[::-1])


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
