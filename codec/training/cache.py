"""A folder of scans packed into one small file for training, and that file read back.

`build_cache` needs nibabel (imported when called); `load_cache` needs the standard library, numpy and
safetensors only.

The file is safetensors. One uint8 tensor per slab, a raw LZMA2 stream of
    voxels as unsigned integers [k, j, i] -> differences along i (and j, where "delta" is 2) -> zigzag -> byte
    planes, lowest first,
and one metadata entry "mricodec-cache", JSON {"version": 1, "slabs": [{name, split, shape, dtype, delta,
spacing_mm, geometry, licence, volume, axis, start}, ...]}. On four real scans zigzag saved 10 to 13 %, LZMA2
2 to 8 % against zlib.
"""

from __future__ import annotations

import csv
import json
import lzma
import os
import re
from collections.abc import Iterator
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

SPLITS = ("train", "validation")
SLAB_SLICES = (
    48  # of a scan cut down to its share: deep enough for a training crop, shallow enough to spread
)
MAX_VOLUMES = 4  # of one 4-D file: further ones show the same anatomy
TRAIN_SHARE = 48 / 55  # of the budget; validation gets what train leaves
NEAR_ISOTROPIC = 1.5  # largest ratio of the spacings

_KEY = "mricodec-cache"
_LZMA: list[dict[str, Any]] = [
    # lc = 4: the code of a byte depends on the magnitude of its left neighbour; pb = 0: planes have no
    # alignment; matches are rare in noise, so the quickest finder gives the same size
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
_ALLOWED = re.compile(
    r"\bCC[ -]?BY\b(?![ -]?(NC|ND|SA))|\bCC[0O]\b|\bMIT\b|\bBSD\b|\bPDDL\b|\bApache\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"not stated|no separate data licence|GPL", re.IGNORECASE)


@dataclass(frozen=True)
class Slab:
    """One volume or consecutive slices of it: stored integers `voxels[k, j, i]`, native byte order."""

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
class LeftOut:
    file: str
    reason: str


@dataclass(frozen=True)
class CacheReport:
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
    def axis(self) -> int:
        """The slice axis: k, unless another axis is clearly coarser."""
        coarsest = int(np.argmax(self.spacing_mm))
        return coarsest if self.spacing_mm[coarsest] > NEAR_ISOTROPIC * self.spacing_mm[0] else 0


def load_cache(path: str | Path) -> list[Slab]:
    """Read every slab of a file made by `build_cache`, in its order.

    Raises OSError if the file can't be opened and FormatError if it is no such cache or is damaged.
    """
    path = Path(path)
    with path.open("rb"):  # so that a missing file is an OSError with its name
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            entries = json.loads((file.metadata() or {})[_KEY])
            if entries["version"] != 1:
                raise ValueError(f"version 1 expected, {entries['version']!r} found")
            packed = [
                (entry, file.get_tensor(f"{n:05d}")) for n, entry in enumerate(entries["slabs"])
            ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # lzma releases the interpreter lock
            return list(pool.map(lambda pair: _unpack(*pair), packed))
    except (SafetensorError, lzma.LZMAError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: expected a training cache, found another or a damaged file ({error}); "
            "make it again with 'mricodec cache'"
        ) from error


def build_cache(
    data_dir: str | Path, out: str | Path, budget_mib: float = 55, threads: int | None = None
) -> CacheReport:
    """Pack `data_dir`/train and `data_dir`/validation into one file of at most `budget_mib` MiB.

    Where MANIFEST.csv exists (columns file, licence, contrast, body_part), a training scan is taken only if
    its licence allows it; without one every scan is taken. The budget is shared out by the square root of the
    voxel count; a scan that does not fit its share gives evenly spaced slabs. The same scans give the same
    bytes.

    Raises OSError for a folder that can't be read and ValueError if no scan is left.
    """
    data_dir, out = Path(data_dir), Path(out)
    for folder in (out.parent, *(data_dir / split for split in SPLITS)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder, found none")
    manifest = read_manifest(data_dir / "MANIFEST.csv")
    left_out: list[LeftOut] = []
    total = int(budget_mib * 2**20)
    used = 0
    kept: list[tuple[Slab, bytes, int]] = []
    for split, share in zip(SPLITS, (TRAIN_SHARE, 1.0), strict=True):
        scans = list(_read_scans(data_dir, split, manifest, left_out))
        if not scans:
            raise ValueError(
                f"{data_dir / split}: expected at least one usable NIfTI scan, found none"
            )
        chosen = _fit(scans, int(total * share) - used, threads)
        used += sum(_cost(data) for _, data, _ in chosen)
        taken = {slab.name for slab, _, _ in chosen}
        left_out += [
            LeftOut(scan.name, "no slice fits its share")
            for scan in scans
            if scan.name not in taken
        ]
        kept += chosen
    entries = []
    for slab, _, delta in kept:
        entry = {key: value for key, value in vars(slab).items() if key != "voxels"}
        entries.append(
            {**entry, "shape": slab.voxels.shape, "dtype": slab.voxels.dtype.name, "delta": delta}
        )
    tensors = {f"{n:05d}": np.frombuffer(data, np.uint8) for n, (_, data, _) in enumerate(kept)}
    # a single metadata entry: safetensors writes several in no fixed order
    metadata = {
        _KEY: json.dumps({"version": 1, "slabs": entries}, sort_keys=True, separators=(",", ":"))
    }
    part = out.with_name(out.name + ".part")
    try:
        part.write_bytes(save(tensors, metadata))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return CacheReport(
        size=out.stat().st_size,
        slabs=len(kept),
        voxels={
            split: sum(slab.voxels.size for slab, _, _ in kept if slab.split == split)
            for split in SPLITS
        },
        left_out=tuple(left_out),
        notes=(
            "validation is measured on, not trained on: its scans are taken whatever their licence",
        )
        if manifest
        else (),
    )


def read_manifest(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "licence"} <= rows[0].keys():
        raise ValueError(f"{path}: expected a table with the columns file and licence")
    return {row["file"]: row for row in rows}


def licence_refusal(licence: str | None) -> str | None:
    """The reason not to train on data under this licence, or None."""
    if licence is None:
        return "not in MANIFEST.csv, so its licence is unknown"
    if _REFUSED.search(licence) or not _ALLOWED.search(licence):
        return f"licence not on the list of those that allow training: {licence}"
    return None


def _read_scans(
    data_dir: Path, split: str, manifest: dict[str, dict[str, str]], left_out: list[LeftOut]
) -> Iterator[_Scan]:
    import nibabel as nib

    for path in sorted((data_dir / split).iterdir()):
        if not path.name.endswith((".nii", ".nii.gz")):
            continue
        name = f"{split}/{path.name}"
        row = manifest.get(name)
        if (
            manifest
            and split == "train"
            and (reason := licence_refusal(row["licence"] if row else None))
        ):
            left_out.append(LeftOut(name, reason))
            continue
        image: Any = nib.load(path)  # type: ignore[attr-defined, unused-ignore]
        if image.get_data_dtype().kind not in "iu":
            left_out.append(
                LeftOut(name, f"expected stored integers, found {image.get_data_dtype()}")
            )
            continue
        stored = np.asarray(image.dataobj.get_unscaled()).T
        stored = stored.reshape((-1, *(1,) * max(0, 3 - stored.ndim), *stored.shape[-3:]))
        volumes = np.ascontiguousarray(stored[:MAX_VOLUMES], dtype=stored.dtype.newbyteorder("="))
        zooms = (*(float(zoom) for zoom in image.header.get_zooms()[:3]), 1.0, 1.0)
        spacing_mm = (zooms[2], zooms[1], zooms[0])
        geometry = _geometry(spacing_mm, stored.shape[0], row or {})
        yield _Scan(name, split, volumes, spacing_mm, geometry, row["licence"] if row else "")


def _geometry(spacing_mm: tuple[float, float, float], volumes: int, row: dict[str, str]) -> str:
    contrast, body_part = row.get("contrast", ""), row.get("body_part", "")
    if re.search(r"DWI|EPI|fMRI", contrast) or (not contrast and volumes > 1):
        return "dwi"
    if body_part and not body_part.startswith(("head", "brain")):
        return "body"
    return "near-isotropic" if max(spacing_mm) <= NEAR_ISOTROPIC * min(spacing_mm) else "thick"


def _cut(scan: _Scan, slices: int) -> list[Slab]:
    """Evenly spaced slabs with about `slices` slices of each volume; one slab, if that is all of them."""
    length = scan.volumes.shape[1 + scan.axis]
    slices = max(1, min(slices, length))
    count = 1 if slices == length else -(-slices // SLAB_SLICES)
    depth = slices // count
    starts = [round((n + 0.5) * length / count - depth / 2) for n in range(count)]
    spans = [(start, start + depth) for start in starts]
    slabs = []
    for volume, voxels in enumerate(scan.volumes):
        for start, stop in spans:
            part = np.take(voxels, range(start, stop), scan.axis)
            slabs.append(
                Slab(
                    scan.name,
                    scan.split,
                    part,
                    scan.spacing_mm,
                    scan.geometry,
                    scan.licence,
                    volume,
                    scan.axis,
                    start,
                )
            )
    return slabs


def _fit(scans: list[_Scan], budget: int, threads: int | None) -> list[tuple[Slab, bytes, int]]:
    """Slabs of all scans, packed, in at most `budget` bytes."""
    packed = {
        n: _pack_all(_cut(scan, scan.volumes.shape[1 + scan.axis]), threads)
        for n, scan in enumerate(scans)
    }
    whole = {n: sum(_cost(data) for _, data, _ in slabs) for n, slabs in packed.items()}
    weight = {n: scan.volumes.size**0.5 for n, scan in enumerate(scans)}
    pending, left = set(whole), budget
    while pending:  # scans smaller than their share leave the rest of it to the others
        share = {n: left * weight[n] / sum(weight[m] for m in pending) for n in pending}
        small = {n for n in pending if whole[n] <= share[n]}
        if not small:
            break
        left -= sum(whole[n] for n in small)
        pending -= small
    for n in sorted(pending):
        slices = int(scans[n].volumes.shape[1 + scans[n].axis] * share[n] / whole[n])
        while slices:
            packed[n] = _pack_all(_cut(scans[n], slices), threads)
            if sum(_cost(data) for _, data, _ in packed[n]) <= share[n]:
                break
            slices = min(
                slices - 1, int(slices * 0.97)
            )  # the middle of a head costs more than its ends
        else:
            packed[n] = []
    return [slab for n in range(len(scans)) for slab in packed[n]]


def _cost(data: bytes) -> int:
    return len(data) + 600  # the slab's entry in the header of the file


def _pack_all(slabs: list[Slab], threads: int | None) -> list[tuple[Slab, bytes, int]]:
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return [
            (slab, *packed)
            for slab, packed in zip(slabs, pool.map(lambda s: _pack(s.voxels), slabs), strict=True)
        ]


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
