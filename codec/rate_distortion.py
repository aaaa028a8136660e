"""Rate-distortion curves from real files: encode, decode from the file, compare, keep the figures.

Rate = all bytes of the file x 8 / voxels; PSNR and SSIM as in `metrics`, the peak being maximum - minimum of
the whole volume. Every codec is a `Contender`. A point is not measured again while its file, the voxels and
the codec's version are the ones it was measured with.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import api, metrics, peers
from .formats import open_scan
from .metrics import Range
from .output import replacing
from .slabcoding import LossyModel
from .tiling import SLAB_SLICES, Tiling
from .volume import Volume

MODELS = ("default", "hyperprior", "factorized")
LEAST_POINTS = 8  # on a curve: its spline needs 4 within the range that two codecs share
LEAST_PSNR = 25.0  # dB; below, the 130 bytes of header of a JPEG 2000 slice are most of the file
QUALITIES = (0.0, 80.0)  # beyond, lossless is not much larger


@dataclass(frozen=True, eq=False)
class Source:
    """A volume under test, or the part `roi` of one."""

    name: str
    voxels: NDArray[Any]  # [..., k, j, i], stored values
    input: str | Volume  # what is encoded: the file with its header, or an array without
    limits: Range  # (least, largest) stored value of the whole volume
    digest: str  # SHA-256 of type, shape and voxels
    roi: str = "full"

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], name: str | None = None) -> Source:
        """A scan. FormatError or OSError if it can't be read, ValueError if it has no PSNR."""
        with closing(open_scan(path)) as scan:
            slabs = list(scan.blocks(Tiling(scan.shape, 0, SLAB_SLICES)))
            if not slabs:
                raise ValueError(f"no voxels in a scan of shape {scan.shape}")
            voxels = np.concatenate(slabs).reshape(scan.shape)
        return cls._of(name or scan_name(path), voxels, os.fspath(path), None, "full")

    @classmethod
    def of_array(cls, name: str, volume: Volume, limits: Range | None = None, roi: str = "full") -> Source:
        """An array without header; `limits` of the whole if it is a part. ValueError if it has no PSNR."""
        return cls._of(name, volume.array, volume, limits, roi)

    @classmethod
    def _of(
        cls, name: str, voxels: NDArray[Any], input_: str | Volume, limits: Range | None, roi: str
    ) -> Source:
        if voxels.dtype.kind not in "iuf":
            raise ValueError(f"PSNR needs real numbers, the voxels are {voxels.dtype}")
        limits = limits or metrics.value_range(voxels)
        if not limits[0] < limits[1] < math.inf or limits[0] == -math.inf:
            raise ValueError(
                f"PSNR needs finite values that differ, the voxels lie in {limits[0]:g} ... {limits[1]:g}"
            )
        digest = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape}".encode())
        digest.update(np.ascontiguousarray(voxels).reshape(-1).view(np.uint8).data)
        return cls(name, voxels, input_, limits, digest.hexdigest(), roi)

    @property
    def peak(self) -> float:
        """Of PSNR and SSIM, stored units."""
        return self.limits[1] - self.limits[0]


class Contender(Protocol):
    """A codec under test. `encode` and `decode` raise ValueError or OSError for what they can't do."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str:
        """Of its files."""

    @property
    def version(self) -> str:
        """Software and weights: another version is another measurement."""

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        """Write a file with everything that decoding needs."""

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        """Voxels of the shape and type of `source.voxels`, from the file; a peer knows shape and range."""


class Jpeg2000:
    """JPEG 2000 9/7 slice by slice (k), parameter: PSNR aimed at in every slice."""

    name = "jpeg2000"
    suffix = ".j2k-slices"

    def __init__(self) -> None:
        self.version = peers.jpeg2000_version()

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        samples = peers.Samples.of(source.voxels, source.limits)
        data = peers.encode_jpeg2000(samples.from_values(source.voxels), samples.peak, parameter)
        with replacing(path) as file:
            file.write(data)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        samples = peers.Samples.of(source.voxels, source.limits)
        count = math.prod(source.voxels.shape[:-2])
        return samples.to_values(peers.decode_jpeg2000(path.read_bytes(), count), source.voxels.shape)


class Mricodec:
    """This codec with one of `MODELS` or a model object, loaded once; parameter: `quality`.

    Times include reading the scan's file.
    """

    suffix = ".mrc"

    def __init__(self, model: str | LossyModel = api.DEFAULT_MODEL, *, device: str = "auto") -> None:
        """ValueError without such a model or device, FormatError if its weights are damaged."""
        if isinstance(model, str):
            self.version = api.version(model)
            self._model = api._load(model, device)
        else:
            self.version = model.model_id.hex()
            self._model = model
        name = self._model.name
        self.name = "mricodec" if name == api.DEFAULT_MODEL else f"mricodec-{name}"
        self._decoder = api.Decoder(model=self._model, device=device)

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        report = api.Encoder(quality=parameter, model=self._model).encode_file(source.input, path)
        if report.reason is not None:
            raise ValueError(f"coded without loss: {report.reason}")

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        return self._decoder.decode(path).array


class MricodecLossless:
    """This codec without loss; it has no parameter."""

    name = "mricodec-lossless"
    suffix = ".mrc"

    def __init__(self) -> None:
        self.version = api.version()

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        api.encode(source.input, lossless=True, out=path)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        return api.decode(path).array


@dataclass(frozen=True)
class Point:
    """One file: what it costs and what is left of the volume."""

    volume: str
    roi: str
    shape: str  # [..., k, j, i]
    codec: str
    param: float
    nvox: int
    nbytes: int  # of the whole file
    bpv: float  # bits per voxel
    psnr: float  # dB
    ssim: float
    maxerr: float  # stored units
    exact: int  # 1: no voxel differs
    enc_wall: float  # seconds
    enc_cpu: float  # seconds, all threads
    dec_wall: float
    dec_cpu: float
    rmse: float  # stored units
    peak: float  # stored units
    version: str  # of the codec
    voxels: str  # SHA-256 of the original's
    file: str  # relative to the folder of the results
    file_sha256: str

    @property
    def key(self) -> tuple[str, str, str, float]:
        return self.volume, self.roi, self.codec, self.param

    def to_row(self) -> dict[str, str | float | int | None]:
        """For JSON, which knows neither inf (no voxel differs) nor nan (slices too small for SSIM): None."""
        row = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Point:
        """The inverse of `to_row`; KeyError or TypeError if the row is none."""
        values = {field.name: row[field.name] for field in fields(cls)}
        for name, value in (("psnr", math.inf), ("ssim", math.nan)):
            if values[name] is None:
                values[name] = value
        return cls(**values)

    def holds_for(self, source: Source, contender: Contender) -> bool:
        return self.voxels == source.digest and self.version == contender.version


def measure(contender: Contender, source: Source, parameter: float, folder: Path) -> Point:
    """Encode to a file in `folder`, decode it from there, compare; raises what the contender raises."""
    directory = folder / "files" / source.name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{contender.name}_{parameter:g}{contender.suffix}"
    start = _clocks()
    contender.encode(source, parameter, path)
    encoded = _clocks()
    decoded = contender.decode(source, path)
    done = _clocks()
    fidelity = metrics.compare(source.voxels, decoded, limits=source.limits)
    nbytes = path.stat().st_size
    return Point(
        volume=source.name,
        roi=source.roi,
        shape="x".join(map(str, source.voxels.shape)),
        codec=contender.name,
        param=parameter,
        nvox=source.voxels.size,
        nbytes=nbytes,
        bpv=8 * nbytes / source.voxels.size,
        psnr=fidelity.psnr,
        ssim=fidelity.ssim,
        maxerr=fidelity.max_error,
        exact=int(fidelity.mse == 0),
        enc_wall=encoded[0] - start[0],
        enc_cpu=encoded[1] - start[1],
        dec_wall=done[0] - encoded[0],
        dec_cpu=done[1] - encoded[1],
        rmse=fidelity.rmse,
        peak=fidelity.peak,
        version=contender.version,
        voxels=source.digest,
        file=path.relative_to(folder).as_posix(),
        file_sha256=sha256_of_file(path),
    )


@dataclass(frozen=True)
class Comparison:
    """BD-rate of a codec against another on one volume; `reason` says why there is no `result`."""

    volume: str
    codec: str
    reference: str
    result: metrics.BdRate | None
    reason: str = ""

    def __str__(self) -> str:
        pair = f"{self.volume}: {self.codec} against {self.reference}"
        if self.result is None:
            return f"{pair}: {self.reason}"
        return (
            f"{pair}: {self.result.percent:+.1f} % bits at equal PSNR, {self.result.low:.1f} to "
            f"{self.result.high:.1f} dB ({self.result.points} and {self.result.reference_points} points)"
        )


def compare_curves(
    points: Sequence[Point], reference: Sequence[Point], low: float = LEAST_PSNR, high: float = math.inf
) -> Comparison:
    """BD-rate between the points of two codecs on one volume, `low` to `high` dB; neither may be empty."""
    names = points[0].volume, points[0].codec, reference[0].codec
    try:
        result = metrics.bd_rate(
            [p.bpv for p in points],
            [p.psnr for p in points],
            [p.bpv for p in reference],
            [p.psnr for p in reference],
            low,
            high,
        )
    except ValueError as error:
        return Comparison(*names, None, str(error))
    return Comparison(*names, result)


def spread_qualities(count: int) -> list[float]:
    """Evenly over QUALITIES."""
    return [round(float(quality), 2) for quality in np.linspace(*QUALITIES, count)]


def scan_name(path: str | os.PathLike[str]) -> str:
    """File name without folder and .nii, .nii.gz, .hdr, .img, .mgz or .mgh."""
    name = Path(path).name
    for suffix in (".gz", ".nii", ".hdr", ".img", ".mgz", ".mgh"):
        name = name.removesuffix(suffix)
    return name


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
