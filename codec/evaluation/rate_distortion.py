"""Points of rate-distortion curves from real files: encode, decode from the file, compare, keep the figures.

Rate = all bytes of the file x 8 / voxels; fidelity as in `metrics`, the peak being maximum - minimum of the whole
volume. Every codec is a `Contender`. A point is not measured again while the voxels and the codec's version are the
ones it was measured with.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.formats.registry import open_scan
from mricodec.codec.tiling import SLAB_SLICES, Tiling
from mricodec.codec.volume import Volume
from mricodec.codec.voxels import metrics, noise
from mricodec.codec.voxels.metrics import Range

from .complexity import UNKNOWN, Complexity

MIN_POINTS = 8  # on a curve: its spline needs 4 within the range that two codecs share
ISOTROPIC = 1.5  # largest over least spacing, up to which a volume counts as near-isotropic


@dataclass(frozen=True, eq=False)
class Source:
    """A volume under test, or the part `roi` of one."""

    name: str
    voxels: NDArray[Any]  # [..., k, j, i], stored values
    input: str | Volume  # what is encoded: the file with its header, or an array without
    limits: Range  # (least, largest) stored value of the whole volume
    digest: str  # SHA-256 of type, shape and voxels
    roi: str = "full"
    group: str = ""  # its class, see `group_of`

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], name: str | None = None) -> Source:
        """A scan. FormatError or OSError if it can't be read, ValueError if it has no PSNR."""
        with closing(open_scan(path)) as scan:
            slabs = list(scan.blocks(Tiling(scan.shape, 0, SLAB_SLICES)))
            if not slabs:
                raise ValueError(f"no voxels in a scan of shape {scan.shape}")
            voxels = np.concatenate(slabs).reshape(scan.shape)
            group = group_of(scan.shape, scan.spacing_mm)
        return cls._of(name or scan_name(path), voxels, os.fspath(path), None, "full", group)

    @classmethod
    def bare(cls, path: str | os.PathLike[str], name: str | None = None) -> Source:
        """The voxels of a scan without header, of a 4-D scan the first volume. Errors as in `of_file`."""
        with closing(open_scan(path)) as scan:
            tiling = Tiling(scan.shape, 0, SLAB_SLICES)
            slabs = []
            for slab in scan.blocks(tiling):
                slabs.append(slab)
                if len(slabs) == tiling.slabs_per_volume:
                    break
            if not slabs:
                raise ValueError(f"no voxels in a scan of shape {scan.shape}")
            volume = Volume.from_array(np.concatenate(slabs), spacing_mm=scan.spacing_mm)
            group = group_of(scan.shape, scan.spacing_mm)
        return cls._of(name or scan_name(path), volume.array, volume, None, "full", group)

    def central(self, slices: int) -> Source:
        """The `slices` in the middle of a bare volume, from k = (n - slices) // 2 on; itself if it has no more."""
        if not isinstance(self.input, Volume) or len(self.voxels) <= slices:
            return self
        start = (len(self.voxels) - slices) // 2
        part = np.ascontiguousarray(self.voxels[start : start + slices])
        volume = Volume.from_array(part, spacing_mm=self.input.spacing_mm)
        return self._of(self.name, part, volume, self.limits, f"slab{slices}", self.group)

    @classmethod
    def of_array(
        cls, name: str, volume: Volume, limits: Range | None = None, roi: str = "full"
    ) -> Source:
        """An array without header; `limits` of the whole if it is a part. ValueError if it has no PSNR."""
        group = group_of(volume.array.shape, volume.spacing_mm)
        return cls._of(name, volume.array, volume, limits, roi, group)

    @classmethod
    def _of(
        cls,
        name: str,
        voxels: NDArray[Any],
        input_: str | Volume,
        limits: Range | None,
        roi: str,
        group: str,
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
        return cls(name, voxels, input_, limits, digest.hexdigest(), roi, group)

    @cached_property
    def sigma_hat(self) -> float:
        """Its noise, stored units."""
        return noise.sigma_hat(self.voxels.reshape(-1, *((1, 1, *self.voxels.shape)[-2:])))

    @cached_property
    def windows(self) -> metrics.Windows:
        """Display windows, stored units."""
        return metrics.display_windows(self.voxels)

    @property
    def peak(self) -> float:
        """Of PSNR and SSIM, stored units."""
        return self.limits[1] - self.limits[0]


class Contender(ABC):
    """A codec under test. What it can't do it says by a ValueError or a RuntimeError."""

    name: str
    version: str  # software and weights: another version is another measurement
    suffix: str = ".bin"  # of its files

    @abstractmethod
    def parameters(self, count: int, psnrs: Sequence[float]) -> Sequence[float]:
        """`count` of them, spread over a curve; `psnrs` (dB) of the codecs before it on the same volume."""

    @abstractmethod
    def encode(self, source: Source, parameter: float, path: Path) -> None:
        """Write a file with everything that decoding needs."""

    @abstractmethod
    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        """Voxels of the shape and type of `source.voxels`, from the file; a peer knows shape and range."""

    def complexity(self) -> Complexity:
        """Of its networks."""
        return UNKNOWN


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
    group: str  # the volume's class
    ms_ssim: float  # nan where a side of the slices is below 176 voxels
    rmse_noise: float  # RMSE over the volume's noise sigma_hat; nan if it has none
    psnr_full: float  # dB, within the display windows of `metrics.Windows`
    psnr_narrow: float
    psnr_bright: float
    kmac_enc: float  # thousand multiply-accumulates per voxel; nan where unknown
    kmac_dec: float
    parameters: float  # nan where unknown

    @property
    def key(self) -> tuple[str, str, str, float]:
        return self.volume, self.roi, self.codec, self.param

    def to_row(self) -> dict[str, str | float | int | None]:
        """For JSON, which knows neither inf (no voxel differs) nor nan (not defined): "inf" and None."""
        row = asdict(self)
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[name] = None if math.isnan(value) else str(value)
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Point:
        """The inverse of `to_row`; KeyError, TypeError or ValueError if the row is none."""
        values = {}
        for field in fields(cls):
            value = row[field.name]
            if field.type == "float":
                value = math.nan if value is None else float(value)
            values[field.name] = value
        return cls(**values)

    def holds_for(self, source: Source, contender: Contender) -> bool:
        return self.voxels == source.digest and self.version == contender.version


def measure(contender: Contender, source: Source, parameter: float, folder: Path) -> Point:
    """Encode to a file in `folder`, decode it from there, compare; raises what the contender raises."""
    directory = folder / "files" / source.name
    directory.mkdir(parents=True, exist_ok=True)
    plain = "".join(c if c.isalnum() or c in "._+-" else "_" for c in contender.name)
    path = directory / f"{plain}_{source.roi}_{parameter:g}{contender.suffix}"
    start = _clocks()
    contender.encode(source, parameter, path)
    encoded = _clocks()
    decoded = contender.decode(source, path)
    done = _clocks()
    if decoded.shape != source.voxels.shape:
        raise ValueError(
            f"expected decoded voxels of shape {source.voxels.shape}, found {decoded.shape}"
        )
    fidelity = metrics.compare(source.voxels, decoded, limits=source.limits)
    large = source.voxels.ndim >= 2 and min(source.voxels.shape[-2:]) >= metrics.MS_SSIM_SIDE
    windows = source.windows
    cost = contender.complexity()
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
        group=source.group,
        ms_ssim=metrics.ms_ssim(source.voxels, decoded, limits=source.limits)
        if large
        else math.nan,
        rmse_noise=fidelity.rmse / source.sigma_hat if source.sigma_hat > 0 else math.nan,
        psnr_full=metrics.psnr_in_window(source.voxels, decoded, windows.full),
        psnr_narrow=metrics.psnr_in_window(source.voxels, decoded, windows.narrow),
        psnr_bright=metrics.psnr_in_window(source.voxels, decoded, windows.bright),
        kmac_enc=cost.kmac_encode,
        kmac_dec=cost.kmac_decode,
        parameters=cost.parameters,
    )


class PointFile:
    """JSON lines: an "environment" before the points of every run, then the points, each written when it is measured."""

    def __init__(self, path: Path, environment: Callable[[], dict[str, str]]) -> None:
        """What is there already. ValueError if it is something else."""
        self._path = path
        self._environment = environment
        self._curves: dict[tuple[str, str, str], dict[float, Point]] = {}
        self._announced = False
        if not path.exists():
            return
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                row = json.loads(line)
                if "environment" in row:
                    continue
                if (
                    "file_sha256" in row
                    and not {field.name for field in fields(Point)} <= row.keys()
                ):
                    continue  # of an earlier release, which measured less: it is measured again
                self._take(Point.from_row(row))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a point, found something else ({error!r})"
                ) from error
        if end != len(content):  # the last line of an interrupted run
            path.write_bytes(content[:end])

    @property
    def points(self) -> list[Point]:
        """By volume and codec in the order of their first point, then by size."""
        return [
            p
            for curve in self._curves.values()
            for p in sorted(curve.values(), key=lambda p: (p.nbytes, p.param))
        ]

    def of(self, source: Source, contender: Contender, folder: Path | None = None) -> list[Point]:
        """The points of one curve; none if the volume or the codec is another one now.

        With a `folder` only those whose files are still there, unchanged.
        """
        curve = self._curves.get((source.name, source.roi, contender.name), {})
        points = [point for point in curve.values() if point.holds_for(source, contender)]
        return [p for p in points if folder is None or _is_there(folder, p)]

    def discard(self, source: Source) -> None:
        """Forget what was measured on other voxels under the name of this source."""
        for key in [key for key in self._curves if key[:2] == (source.name, source.roi)]:
            if any(point.voxels != source.digest for point in self._curves[key].values()):
                del self._curves[key]

    def add(self, point: Point) -> None:
        self._take(point)
        with self._path.open("a", encoding="utf-8") as file:
            if not self._announced:
                file.write(json.dumps({"environment": self._environment()}) + "\n")
                self._announced = True
            file.write(json.dumps(point.to_row()) + "\n")

    def _take(self, point: Point) -> None:
        """A point of another volume or version begins its curve anew."""
        curve = self._curves.setdefault((point.volume, point.roi, point.codec), {})
        if any((p.voxels, p.version) != (point.voxels, point.version) for p in curve.values()):
            curve.clear()
        curve[point.param] = point


def _is_there(folder: Path, point: Point) -> bool:
    file = folder / point.file
    return file.is_file() and sha256_of_file(file) == point.file_sha256


def group_of(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> str:
    """The class of a scan by its geometry: what its slices may have in common."""
    if math.prod(shape[:-3]) > 1:
        return "4-D"
    return "near-isotropic" if max(spacing_mm) <= ISOTROPIC * min(spacing_mm) else "thick slices"


def scan_name(path: str | os.PathLike[str]) -> str:
    """File name without folder and .nii, .nii.gz, .hdr, .img, .mgz or .mgh."""
    name = Path(path).name
    for suffix in (".gz", ".nii", ".hdr", ".img", ".mgz", ".mgh"):
        name = name.removesuffix(suffix)
    return name


def _clocks() -> tuple[float, float]:
    """Seconds: wall clock, and CPU of this process and its children."""
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
