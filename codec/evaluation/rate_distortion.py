"""Points of rate-distortion curves from real files: encode, decode from the file, compare.

The rate counts all bytes of the file; PSNR and SSIM take maximum - minimum of the whole volume as
their peak (`codec.voxels.metrics`). Everything that is measured is a `Codec`.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
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

# Points that a curve must have: its spline needs 4 within the PSNRs that two codecs share.
MIN_POINTS = 8
# Largest over smallest voxel spacing up to which a volume counts as near-isotropic.
MAX_ANISOTROPY = 1.5

# Everything a row of JSON may hold.
Row = dict[str, str | float | int | None]


@dataclass(frozen=True, eq=False)
class Source:
    """A volume under test, or the part `roi` of one."""

    name: str
    # Stored values [..., k, j, i].
    voxels: NDArray[Any]
    # What is encoded: the path of a scan, header and all, or an array without header.
    input: str | Volume
    # Smallest and largest stored value of the whole volume.
    limits: Range
    # SHA-256 of data type, shape and voxels.
    digest: str
    # Which part of the volume this is: "full" or "slab40" (the central 40 slices).
    roi: str = "full"
    # Class of the scan by its geometry, see `group_of`.
    group: str = ""

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], name: str | None = None) -> Source:
        """A whole scan. FormatError or OSError if it can't be read, ValueError without a PSNR."""
        with closing(open_scan(path)) as scan:
            slabs = list(scan.blocks(Tiling(scan.shape, 0, SLAB_SLICES)))
            if not slabs:
                raise ValueError(f"no voxels in a scan of shape {scan.shape}")
            voxels = np.concatenate(slabs).reshape(scan.shape)
            group = group_of(scan.shape, scan.envelope.spacing_mm)
        return cls._of(name or scan_name(path), voxels, os.fspath(path), group)

    @classmethod
    def bare(cls, path: str | os.PathLike[str], name: str | None = None) -> Source:
        """The voxels of a scan without its header, of a 4-D scan the first volume.

        Errors as in `of_file`.
        """
        with closing(open_scan(path)) as scan:
            tiling = Tiling(scan.shape, 0, SLAB_SLICES)
            slabs = []
            for slab in scan.blocks(tiling):
                slabs.append(slab)
                if len(slabs) == tiling.slabs_per_volume:
                    break
            if not slabs:
                raise ValueError(f"no voxels in a scan of shape {scan.shape}")
            volume = Volume.from_array(np.concatenate(slabs), spacing_mm=scan.envelope.spacing_mm)
            group = group_of(scan.shape, scan.envelope.spacing_mm)
        return cls._of(name or scan_name(path), volume.array, volume, group)

    def central(self, slices: int) -> Source:
        """The central `slices` of a bare volume, k from (n - slices) // 2 on.

        The source itself if it has no more slices than that.
        """
        if not isinstance(self.input, Volume) or len(self.voxels) <= slices:
            return self
        start = (len(self.voxels) - slices) // 2
        part = np.ascontiguousarray(self.voxels[start : start + slices])
        volume = Volume.from_array(part, spacing_mm=self.input.spacing_mm)
        return self._of(self.name, part, volume, self.group, self.limits, f"slab{slices}")

    @classmethod
    def of_array(
        cls, name: str, volume: Volume, limits: Range | None = None, roi: str = "full"
    ) -> Source:
        """An array without header; `limits` are those of the whole volume if it is a part.

        ValueError if it has no PSNR.
        """
        group = group_of(volume.array.shape, volume.spacing_mm)
        return cls._of(name, volume.array, volume, group, limits, roi)

    @classmethod
    def _of(
        cls, name: str, voxels: NDArray[Any], data: str | Volume, group: str,
        limits: Range | None = None, roi: str = "full",
    ) -> Source:  # fmt: skip
        if voxels.dtype.kind not in "iuf":
            raise ValueError(f"PSNR needs real numbers, the voxels are {voxels.dtype}")
        low, high = limits = limits or metrics.value_range(voxels)
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"PSNR needs finite values that differ, the voxels lie in {low:g} ... {high:g}"
            )
        digest = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape}".encode())
        digest.update(np.ascontiguousarray(voxels).reshape(-1).view(np.uint8).data)
        return cls(name, voxels, data, limits, digest.hexdigest(), roi, group)

    @cached_property
    def sigma_hat(self) -> float:
        """Estimated noise standard deviation, stored units."""
        return noise.sigma_hat(self.voxels.reshape(-1, *((1, 1, *self.voxels.shape)[-2:])))

    @cached_property
    def windows(self) -> metrics.Windows:
        """Display windows, stored units."""
        return metrics.display_windows(self.voxels)

    @property
    def peak(self) -> float:
        """Peak of PSNR and SSIM, stored units."""
        return self.limits[1] - self.limits[0]


class Codec(ABC):
    """A codec under test. What it can't do it reports by a ValueError or a RuntimeError."""

    name: str
    # Software and weights: points of another version are measured again.
    version: str
    # Suffix of its files.
    suffix: str = ".bin"

    @abstractmethod
    def parameters(self, count: int, psnrs: Sequence[float]) -> Sequence[float]:
        """`count` parameters, spread over a curve; `encode` receives them as they are.

        psnrs: those (dB) that the codecs measured before reached on the same volume.
        """

    @abstractmethod
    def encode(self, source: Source, parameter: float, path: Path) -> None:
        """Write a file with everything that decoding needs."""

    @abstractmethod
    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        """Voxels of the shape and type of `source.voxels`; a baseline knows shape and range."""

    def complexity(self) -> Complexity:
        """Cost of its networks."""
        return UNKNOWN


@dataclass(frozen=True)
class Comparison:
    """Distortion of a decoded volume; the peak is maximum - minimum of the whole original."""

    # PSNR in dB; inf if no voxel differs.
    psnr: float
    # Mean SSIM of the slices; nan where a side is below 7 voxels.
    ssim: float
    # Mean MS-SSIM of the slices; nan where a side is below 176 voxels.
    ms_ssim: float
    # Largest absolute error, stored units.
    maxerr: float
    # 1 if no voxel differs, else 0.
    exact: int
    # Root mean squared error, stored units.
    rmse: float
    # RMSE relative to the noise sigma_hat of the original; nan without noise.
    rmse_noise: float
    # Peak of PSNR and SSIM, stored units.
    peak: float
    # PSNR in dB within the display windows of `metrics.Windows`.
    psnr_full: float
    psnr_narrow: float
    psnr_bright: float


def compare(source: Source, decoded: NDArray[Any]) -> Comparison:
    """Distortion of `decoded`; ValueError if its shape differs."""
    if decoded.shape != source.voxels.shape:
        raise ValueError(
            f"expected decoded voxels of shape {source.voxels.shape}, found {decoded.shape}"
        )
    basic = metrics.compare(source.voxels, decoded, limits=source.limits)
    large = source.voxels.ndim >= 2 and min(source.voxels.shape[-2:]) >= metrics.MS_SSIM_SIDE
    full, narrow, bright = (
        metrics.psnr_in_window(source.voxels, decoded, window)
        for window in (source.windows.full, source.windows.narrow, source.windows.bright)
    )
    return Comparison(
        psnr=basic.psnr,
        ssim=basic.ssim,
        ms_ssim=metrics.ms_ssim(source.voxels, decoded, limits=source.limits)
        if large
        else math.nan,
        maxerr=basic.max_error,
        exact=int(basic.mse == 0),
        rmse=basic.rmse,
        rmse_noise=basic.rmse / source.sigma_hat if source.sigma_hat > 0 else math.nan,
        peak=basic.peak,
        psnr_full=full,
        psnr_narrow=narrow,
        psnr_bright=bright,
    )


@dataclass(frozen=True)
class Point:
    """One coded file: its rate, its distortion and its times."""

    volume: str
    roi: str
    # Axes [..., k, j, i] as "40x256x256".
    shape: str
    codec: str
    param: float
    nvox: int
    # Size of the whole file in bytes.
    nbytes: int
    # Bits per voxel.
    bpv: float
    psnr: float
    ssim: float
    maxerr: float
    exact: int
    # Wall-clock and CPU seconds (of all threads and child processes) of one run.
    enc_wall: float
    enc_cpu: float
    dec_wall: float
    dec_cpu: float
    rmse: float
    peak: float
    version: str
    # SHA-256 of the original voxels, see `Source.digest`.
    voxels: str
    # Path of the coded file relative to the folder of the results.
    file: str
    file_sha256: str
    group: str
    ms_ssim: float
    rmse_noise: float
    psnr_full: float
    psnr_narrow: float
    psnr_bright: float
    # Complexity of the codec's networks; nan where unknown.
    kmac_enc: float
    kmac_dec: float
    parameters: float

    def to_row(self) -> Row:
        """For JSON: inf (no voxel differs) as "inf", nan (not defined) as None."""
        return json_row(asdict(self))

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Point:
        """The inverse of `to_row`; KeyError, TypeError or ValueError if the row is no point."""
        values = {}
        for field in fields(cls):
            value = row[field.name]
            if field.type == "float":
                value = math.nan if value is None else float(value)
            values[field.name] = value
        return cls(**values)

    def matches(self, source: Source, codec: Codec) -> bool:
        """Whether it was measured on these voxels with this version of the codec."""
        return self.voxels == source.digest and self.version == codec.version


def json_row(values: dict[str, Any]) -> Row:
    """Values that JSON can hold: inf as "inf", nan as None."""
    row = dict(values)
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[name] = None if math.isnan(value) else str(value)
    return row


def measure(codec: Codec, source: Source, parameter: float, folder: Path) -> Point:
    """Encode to a file in `folder`, decode it from there, compare; raises what the codec raises."""
    directory = folder / "files" / source.name
    directory.mkdir(parents=True, exist_ok=True)
    plain = "".join(c if c.isalnum() or c in "._+-" else "_" for c in codec.name)
    path = directory / f"{plain}_{source.roi}_{parameter:g}{codec.suffix}"
    start = _clocks()
    codec.encode(source, parameter, path)
    encoded = _clocks()
    decoded = codec.decode(source, path)
    end = _clocks()
    comparison = compare(source, decoded)
    cost = codec.complexity()
    nbytes = path.stat().st_size
    return Point(
        volume=source.name,
        roi=source.roi,
        shape="x".join(map(str, source.voxels.shape)),
        codec=codec.name,
        param=float(parameter),
        nvox=source.voxels.size,
        nbytes=nbytes,
        bpv=8 * nbytes / source.voxels.size,
        enc_wall=encoded[0] - start[0],
        enc_cpu=encoded[1] - start[1],
        dec_wall=end[0] - encoded[0],
        dec_cpu=end[1] - encoded[1],
        version=codec.version,
        voxels=source.digest,
        file=path.relative_to(folder).as_posix(),
        file_sha256=sha256_of_file(path),
        group=source.group,
        kmac_enc=cost.kmac_encode,
        kmac_dec=cost.kmac_decode,
        parameters=cost.parameters,
        **asdict(comparison),
    )


def group_of(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> str:
    """Class of a scan by its geometry: how much neighbouring slices may have in common."""
    if math.prod(shape[:-3]) > 1:
        return "4-D"
    isotropic = max(spacing_mm) <= MAX_ANISOTROPY * min(spacing_mm)
    return "near-isotropic" if isotropic else "thick slices"


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
    """SHA-256 of the bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
