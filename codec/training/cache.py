"""A folder of scans packed into one small file for training, and that file read back.

`build_cache` needs nibabel (imported when called); `load_cache` needs the standard library, numpy
and safetensors only.

The file is safetensors. One uint8 tensor per slab, a raw LZMA2 stream of
    voxels as unsigned integers [k, j, i]
    -> differences along i (and j, where "delta" is 2) -> zigzag -> byte planes, lowest first,
and one metadata entry "mricodec-cache", JSON {"version": 1, "slabs": [{name, split, shape, dtype,
delta, spacing_mm, geometry, licence, volume, axis, start}, ...]}. On four real scans zigzag saved
10 to 13 %, LZMA2 2 to 8 % against zlib.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.symbols import unzigzag_array, zigzag_array
from mricodec.codec.atomic import replacing

from .data_folder import DataFolder, LeftOut, ScanFile, read_data_folder

# Splits that are packed; test scans are never part of a training file.
PACKED_SPLITS = ("train", "validation")
# Slices of a slab of a scan that does not fit whole: deep enough for a training crop, shallow
# enough to spread several over the scan.
SLAB_SLICES = 48
# Volumes of one 4-D file that are packed: further ones show the same anatomy.
MAX_VOLUMES = 4
# Share of the budget for training scans; validation scans get what those leave.
TRAIN_SHARE = 48 / 55
# Largest ratio of the voxel spacings of a near-isotropic scan.
NEAR_ISOTROPIC = 1.5
# Bytes of a slab's entry in the header of the file, rounded up.
ENTRY_SIZE = 600
# Share of the time of a scan that reading it and packing it whole take; the rest is for fitting it.
PACKING_SHARE = 0.6

Progress = Callable[[float, str], None]

_KEY = "mricodec-cache"
# lc = 4: the statistics of a byte depend on the magnitude of its left neighbour. pb = 0: byte
# planes have no alignment. Matches are rare in noise: the quickest match finder does as well.
_LZMA: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 24,
        "lc": 4,
        "lp": 0,
        "pb": 0,
        "mf": lzma.MF_HC4,
        "depth": 1,
        "nice_len": 273,
    }
]


@dataclass(frozen=True)
class Slab:
    """A volume or consecutive slices of it: stored integers `voxels[k, j, i]`."""

    name: str
    split: str  # "train" or "validation"
    voxels: NDArray[Any]
    spacing_mm: tuple[float, float, float]  # (k, j, i)
    geometry: str  # "near-isotropic", "thick", "dwi" or "body"
    licence: str
    volume: int  # index of the volume in its file
    axis: int  # axis of `voxels` along which the slab was cut
    start: int  # its first slice along that axis


@dataclass(frozen=True)
class CacheReport:
    """What `build_cache` wrote."""

    size: int  # bytes of the file
    slabs: int
    voxels: dict[str, int]  # by split
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Scan:
    name: str
    split: str
    volumes: NDArray[Any]  # [t, k, j, i]
    spacing_mm: tuple[float, float, float]
    geometry: str
    licence: str

    @property
    def slices(self) -> int:
        """Slices of a volume along `axis`."""
        return int(self.volumes.shape[1 + self.axis])

    @property
    def axis(self) -> int:
        """The slice axis: k, unless another axis is clearly coarser."""
        coarsest = int(np.argmax(self.spacing_mm))
        return coarsest if self.spacing_mm[coarsest] > NEAR_ISOTROPIC * self.spacing_mm[0] else 0


@dataclass(frozen=True)
class _PackedSlab:
    slab: Slab
    data: bytes
    delta: int  # 1: differences along i; 2: along i and j

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return len(self.data) + ENTRY_SIZE


def load_cache(path: str | Path) -> list[Slab]:
    """Read every slab of a file made by `build_cache`, in its order.

    Raises OSError if the file can't be opened and FormatError if it is no such cache or is damaged.
    """
    path = Path(path)
    with path.open("rb"):  # A missing file is an OSError with its name.
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            entries = json.loads((file.metadata() or {})[_KEY])
            if entries["version"] != 1:
                raise ValueError(f"expected version 1, found {entries['version']!r}")
            packed = [
                (entry, file.get_tensor(f"{n:05d}")) for n, entry in enumerate(entries["slabs"])
            ]
        with ThreadPoolExecutor(_thread_count()) as pool:  # lzma releases the GIL.
            return list(pool.map(lambda pair: _unpack(*pair), packed))
    except (SafetensorError, lzma.LZMAError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: expected a training cache, found another or a damaged file ({error}); "
            "make it again with 'mricodec cache'"
        ) from error


def build_cache(
    data_dir: str | Path,
    out: str | Path,
    budget_mib: float = 55,
    *,
    scans_per_split: int | None = None,
    progress: Progress | None = None,
) -> CacheReport:
    """Pack the training and validation scans of a data folder into at most `budget_mib` MiB.

    See `read_data_folder` for the folder; a training scan is taken only if its licence allows it.
    The budget is shared out by the square root of the voxel count; a scan that does not fit its
    share gives evenly spaced slabs. The same scans give the same bytes. With `scans_per_split` only
    so many scans of a split are packed, the smallest files. `progress` receives the fraction of the
    work that is done and the name of the scan in work.

    OSError for a folder that can't be read, ValueError if no training scan is left.
    """
    data_dir, out = Path(data_dir), Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: expected a folder, found none")
    data = read_data_folder(data_dir)
    left_out = list(data.left_out)
    files = {split: _choose(data, split, scans_per_split, left_out) for split in PACKED_SPLITS}
    if not files["train"]:
        reasons = "; ".join(sorted({item.reason for item in left_out}))
        raise ValueError(
            f"{data_dir}: expected at least one usable training scan, found none ({reasons})"
        )
    work = _Work([file for split in PACKED_SPLITS for file in files[split]], progress)
    total = int(budget_mib * 2**20)
    train_budget = int(total * TRAIN_SHARE) if files["validation"] else total
    packed = _fit(files["train"], train_budget, work)
    used = sum(slab.size for slab in packed)
    packed += _fit(files["validation"], total - used, work)
    fitting = {item.slab.name for item in packed}
    left_out += [
        LeftOut(file.name, "no slice fits its share of the budget")
        for split in PACKED_SPLITS
        for file in files[split]
        if file.name not in fitting
    ]
    _write(out, packed)
    voxels = {
        split: sum(item.slab.voxels.size for item in packed if item.slab.split == split)
        for split in PACKED_SPLITS
    }
    notes = _notes(data, has_validation=bool(files["validation"]))
    return CacheReport(out.stat().st_size, len(packed), voxels, tuple(left_out), notes)


class _Work:
    """Progress, in bytes of scan files: each is read, packed, and fitted to its share."""

    def __init__(self, files: list[ScanFile], progress: Progress | None) -> None:
        self._progress = progress
        self._sizes = {file.name: file.path.stat().st_size for file in files}
        self._done = 0.0

    def advance(self, name: str, share: float) -> None:
        """`share` of the work on this scan is done."""
        self._done += share * self._sizes[name]
        if self._progress is not None:
            self._progress(min(self._done / sum(self._sizes.values()), 1.0), name)


def _notes(data: DataFolder, *, has_validation: bool) -> tuple[str, ...]:
    if not has_validation:
        return ("no validation scans: a training on this file is not measured",)
    if data.has_manifest:
        return (
            "validation is measured on, not trained on: its scans are taken whatever their licence",
        )
    return ()


def _choose(
    data: DataFolder, split: str, limit: int | None, left_out: list[LeftOut]
) -> list[ScanFile]:
    """The scans of a split to pack, in the order of their names; all others join `left_out`."""
    import nibabel as nib

    files = []
    for file in data.of(split):
        dtype = nib.load(file.path).get_data_dtype()  # type: ignore[attr-defined, unused-ignore]
        if dtype.kind in "iu":
            files.append(file)
        else:
            left_out.append(LeftOut(file.name, f"expected stored integers, found {dtype}"))
    smallest = sorted(files, key=lambda file: file.path.stat().st_size)[:limit]
    if len(smallest) < len(files):
        reason = f"only the {len(smallest)} smallest are packed"
        left_out.append(LeftOut(f"{len(files) - len(smallest)} scans of {split}", reason))
    return [file for file in files if file in smallest]


def _read_scan(file: ScanFile) -> _Scan:
    import nibabel as nib

    image: Any = nib.load(file.path)  # type: ignore[attr-defined, unused-ignore]
    stored = np.asarray(image.dataobj.get_unscaled()).T
    stored = stored.reshape((-1, *(1,) * max(0, 3 - stored.ndim), *stored.shape[-3:]))
    volumes = np.ascontiguousarray(stored[:MAX_VOLUMES], dtype=stored.dtype.newbyteorder("="))
    zooms = (*(float(zoom) for zoom in image.header.get_zooms()[:3]), 1.0, 1.0)
    spacing_mm = (zooms[2], zooms[1], zooms[0])
    geometry = _geometry(spacing_mm, stored.shape[0], file.manifest)
    licence = file.manifest.get("licence", "")
    return _Scan(file.name, file.split, volumes, spacing_mm, geometry, licence)


def _geometry(spacing_mm: tuple[float, float, float], volumes: int, row: dict[str, str]) -> str:
    contrast, body_part = row.get("contrast", ""), row.get("body_part", "")
    if re.search(r"DWI|EPI|fMRI", contrast) or (not contrast and volumes > 1):
        return "dwi"
    if body_part and not body_part.startswith(("head", "brain")):
        return "body"
    return "near-isotropic" if max(spacing_mm) <= NEAR_ISOTROPIC * min(spacing_mm) else "thick"


def _slabs(scan: _Scan, slices: int) -> list[Slab]:
    """Evenly spaced slabs with about `slices` slices of each volume; one slab, if that is all."""
    length = scan.slices
    slices = max(1, min(slices, length))
    count = 1 if slices == length else -(-slices // SLAB_SLICES)
    depth = slices // count
    starts = [round((n + 0.5) * length / count - depth / 2) for n in range(count)]
    return [
        Slab(
            name=scan.name,
            split=scan.split,
            voxels=np.take(voxels, range(start, start + depth), scan.axis),
            spacing_mm=scan.spacing_mm,
            geometry=scan.geometry,
            licence=scan.licence,
            volume=volume,
            axis=scan.axis,
            start=start,
        )
        for volume, voxels in enumerate(scan.volumes)
        for start in starts
    ]


def _fit(files: list[ScanFile], budget: int, work: _Work) -> list[_PackedSlab]:
    """Slabs of all scans, packed, in at most `budget` bytes."""
    scans: list[_Scan] = []
    packed: list[list[_PackedSlab]] = []
    for file in files:
        scan = _read_scan(file)
        scans.append(scan)
        packed.append(_pack_all(_slabs(scan, scan.slices)))
        work.advance(scan.name, PACKING_SHARE)
    sizes = [sum(slab.size for slab in slabs) for slabs in packed]
    shares = _shares(sizes, [scan.volumes.size**0.5 for scan in scans], budget)
    for n, (scan, size, share) in enumerate(zip(scans, sizes, shares, strict=True)):
        if size > share:
            packed[n] = _cut_to(scan, int(scan.slices * share / size), share)
        work.advance(scan.name, 1 - PACKING_SHARE)
    return [slab for slabs in packed for slab in slabs]


def _shares(sizes: list[int], weights: list[float], budget: float) -> list[float]:
    """The share of `budget` of each scan: what a scan smaller than its share leaves goes to the
    others by their weights."""
    shares = [float(size) for size in sizes]
    pending = set(range(len(sizes)))
    while pending:
        total = sum(weights[n] for n in pending)
        offered = {n: budget * weights[n] / total for n in pending}
        small = {n for n in pending if sizes[n] <= offered[n]}
        if not small:
            for n in pending:
                shares[n] = offered[n]
            break
        budget -= sum(sizes[n] for n in small)
        pending -= small
    return shares


def _cut_to(scan: _Scan, slices: int, share: float) -> list[_PackedSlab]:
    """About `slices` slices of each volume, or as many fewer as fit; none if not one fits."""
    while slices > 0:
        packed = _pack_all(_slabs(scan, slices))
        if sum(slab.size for slab in packed) <= share:
            return packed
        # The middle of a head takes more bytes than its ends, so the estimate may be too high.
        slices = min(slices - 1, int(slices * 0.97))
    return []


def _pack_all(slabs: list[Slab]) -> list[_PackedSlab]:
    with ThreadPoolExecutor(_thread_count()) as pool:
        return [
            _PackedSlab(slab, *packed)
            for slab, packed in zip(slabs, pool.map(lambda s: _pack(s.voxels), slabs), strict=True)
        ]


def _thread_count() -> int | None:
    """As many threads as OMP_NUM_THREADS allows, else one for each core."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) > 0 else os.cpu_count()


def _write(out: Path, packed: list[_PackedSlab]) -> None:
    entries = [
        {
            **{key: value for key, value in vars(item.slab).items() if key != "voxels"},
            "shape": item.slab.voxels.shape,
            "dtype": item.slab.voxels.dtype.name,
            "delta": item.delta,
        }
        for item in packed
    ]
    tensors = {f"{n:05d}": np.frombuffer(item.data, np.uint8) for n, item in enumerate(packed)}
    header = json.dumps({"version": 1, "slabs": entries}, sort_keys=True, separators=(",", ":"))
    # A single metadata entry: safetensors writes several in no fixed order.
    data = save(tensors, {_KEY: header})
    with replacing(out) as file:
        file.write(data)


def _pack(voxels: NDArray[Any]) -> tuple[bytes, int]:
    """Compressed bytes and the number of axes along which differences were taken."""
    unsigned = np.dtype(f"u{voxels.dtype.itemsize}")
    along_i = np.ascontiguousarray(voxels).view(unsigned).copy()
    along_i[..., 1:] -= along_i[..., :-1].copy()
    along_both = along_i.copy()
    along_both[:, 1:] -= along_i[:, :-1]
    signed = f"i{unsigned.itemsize}"
    candidates = [zigzag_array(along.view(signed)) for along in (along_i, along_both)]
    best = int(np.argmin([float(np.log2(symbols + 1.0).sum()) for symbols in candidates]))
    planes = (
        candidates[best]
        .astype(unsigned.newbyteorder("<"))
        .reshape(-1)
        .view(np.uint8)
        .reshape(-1, unsigned.itemsize)
        .T
    )
    return lzma.compress(planes.tobytes(), lzma.FORMAT_RAW, filters=_LZMA), best + 1


def _unpack(entry: dict[str, Any], data: NDArray[np.uint8]) -> Slab:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    unsigned = np.dtype(f"<u{dtype.itemsize}")
    raw = lzma.decompress(data.tobytes(), lzma.FORMAT_RAW, filters=_LZMA)
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    symbols = (
        np.ascontiguousarray(planes.T)
        .view(unsigned)
        .astype(unsigned.newbyteorder("="))
        .reshape(shape)
    )
    voxels = unzigzag_array(symbols).view(symbols.dtype)
    if entry["delta"] == 2:
        voxels = np.cumsum(voxels, axis=1, dtype=voxels.dtype)
    voxels = np.cumsum(voxels, axis=2, dtype=voxels.dtype).view(dtype)
    spacing_mm = tuple(entry["spacing_mm"])
    rest = {
        key: entry[key]
        for key in ("name", "split", "geometry", "licence", "volume", "axis", "start")
    }
    return Slab(voxels=voxels, spacing_mm=spacing_mm, **rest)
