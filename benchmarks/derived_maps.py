"""Derived maps, labels and masks of a data folder: those of maps/, and others made from its scans.

Scanners, FSL, SPM and ANTs write such maps: a threshold sets the background to one value, and
quantities become integers by a step, or stay floats with noise in every bit of their mantissas.
b-values, echo times and directions that the corpus does not name are assumed: what matters is how
the values are spread, not that they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mricodec.codec.evaluation.rate_distortion import scan_name

from . import volumes

# Of larger scans the central slices are used, so that every map is measured within a minute.
MAX_VOXELS = 2_000_000
# Assumed b-values of the trace images of PROSTATEx, s/mm^2, and of diffusion-weighted volumes.
TRACE_B_VALUES = (50, 400, 800, 1400)
B_VALUE = 1000
# Diffusivity of an integer ADC map: 10^-6 mm^2/s a step, and the largest as of scanners.
ADC_STEP, ADC_MAX = 1e-6, 4095
# Assumed times of the two echoes of a T2* map, ms; the second echo is a scan half as bright.
ECHO_TIMES = (2.2, 4.6)

Array = NDArray[Any]


@dataclass(frozen=True)
class Map:
    """A map as a bare array [..., k, j, i] of stored values."""

    name: str
    array: Array

    @property
    def is_float(self) -> bool:
        return self.array.dtype.kind == "f"


def load(path: Path) -> Array:
    """Stored values [..., k, j, i] of a NIfTI scan, in native byte order."""
    image: Any = nibabel.load(path)
    array = np.asarray(image.dataobj.get_unscaled()).T
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def central(array: Array) -> Array:
    """Central slices [..., k, j, i] of at most `MAX_VOXELS` a volume."""
    slices = array.shape[-3]
    count = min(slices, max(8, MAX_VOXELS // (array.shape[-1] * array.shape[-2])))
    first = (slices - count) // 2
    return np.ascontiguousarray(array[..., first : first + count, :, :])


def existing(data: Path, prefix: str) -> Iterator[Map]:
    """The maps of the folder maps/ whose names begin with a prefix."""
    for path in volumes.scans([data], "maps"):
        if scan_name(path).startswith(prefix):
            yield Map(scan_name(path), load(path))


def derived(data: Path) -> Iterator[Map]:
    """Maps made from the scans of train/ and validation/."""
    for name, scan, make in MADE:
        scans = [data / split / f"{scan}.nii.gz" for split in ("train", "validation")]
        path = next((path for path in scans if path.is_file()), None)
        if path is not None:
            yield Map(f"made_{name}", np.ascontiguousarray(make(central(load(path)))))


# -- parts of maps ------------------------------------------------------------------------------


def threshold(image: Array) -> float:
    """The threshold of Otsu between the background and the rest, of a histogram of 256 bins."""
    counts, edges = np.histogram(image, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between)])


def smooth(image: Array, passes: int) -> NDArray[np.float32]:
    """A separable binomial filter of three taps along every axis, again and again."""
    out = image.astype(np.float32)
    for _ in range(passes):
        for axis in range(out.ndim):
            padded = np.concatenate([out.take([0], axis), out, out.take([-1], axis)], axis)
            size = out.shape[axis]
            before, after = (padded.take(range(n, n + size), axis) for n in (0, 2))
            out = (before + after + 2 * out) / np.float32(4)
    return out


def foreground(image: Array) -> NDArray[np.bool_]:
    """A smooth mask of what is not background."""
    soft = smooth(image, 4)
    return soft > threshold(soft) / 2


def log_ratio(first: Array, second: Array) -> NDArray[np.float64]:
    """ln(first / second) of positive values; the smallest value stands for 0."""
    return np.log(np.maximum(first, 1.0)) - np.log(np.maximum(second, 1.0))


# -- maps of diffusion --------------------------------------------------------------------------


def trace_adc(series: Array) -> NDArray[np.float64]:
    """ADC, mm^2/s, by least squares of ln S over the b-values of trace images; 0 outside."""
    b = np.array(TRACE_B_VALUES[: len(series)], float)
    centred = b - b.mean()
    logs = np.log(np.maximum(series, 1.0))
    slope = -np.tensordot(centred, logs, 1) / (centred**2).sum()
    kept = series[0] > threshold(series[0]) / 2
    return np.where(kept, np.maximum(slope, 0), 0)


def direction_adc(series: Array) -> NDArray[np.float64]:
    """ADC of diffusion-weighted volumes behind one without weighting, mm^2/s; 0 outside."""
    adc = log_ratio(series[0], series[1:].mean(0)) / B_VALUE
    return np.where(foreground(series[0]), np.maximum(adc, 0), 0)


def integer_adc(adc: Array) -> NDArray[np.int16]:
    """ADC in steps of 10^-6 mm^2/s, as scanners store it."""
    return np.clip(np.rint(adc / ADC_STEP), 0, ADC_MAX).astype(np.int16)


def directions(count: int) -> NDArray[np.float64]:
    """Unit vectors [count, 3] spread over a half sphere along a spiral."""
    z = (np.arange(count) + 0.5) / count
    angle = np.arange(count) * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)


def tensors(series: Array) -> NDArray[np.float32]:
    """Diffusion tensors [6, k, j, i], as dtifit orders them, in a mask; 0 outside."""
    logs = log_ratio(series[:1], series[1:]) / B_VALUE
    x, y, z = directions(len(series) - 1).T
    design = np.stack([x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z], 1)
    fitted = np.tensordot(np.linalg.pinv(design), logs, 1)
    return (fitted * foreground(series[0])).astype(np.float32)


def eigen(series: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues [k, j, i, 3], ascending, their vectors [k, j, i, 3, 3], and the mask."""
    xx, xy, xz, yy, yz, zz = tensors(series).astype(np.float64)
    matrix = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).reshape(*xx.shape, 3, 3)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors, foreground(series[0])


def anisotropy(series: Array) -> NDArray[np.float32]:
    """Fractional anisotropy, float32; 0 outside of a mask."""
    values, _, mask = eigen(series)
    spread = ((values - values.mean(-1, keepdims=True)) ** 2).sum(-1)
    total = np.maximum((values**2).sum(-1), 1e-30)
    return np.where(mask, np.sqrt(1.5 * spread / total), 0).astype(np.float32)


def main_direction(series: Array) -> NDArray[np.float32]:
    """The main direction [3, k, j, i], float32; 0 outside of a mask."""
    _, vectors, mask = eigen(series)
    return np.moveaxis(vectors[..., 2] * mask[..., None], -1, 0).astype(np.float32)


# -- maps of relaxation, perfusion and activation -------------------------------------------------


def t2_star(image: Array) -> NDArray[np.float64]:
    """T2*, ms, of two echoes, the second made of the first's neighbour rows; 0 outside."""
    second = (image + np.roll(image, 1, -2)) / 3.0
    rate = log_ratio(image, second) / (ECHO_TIMES[1] - ECHO_TIMES[0])
    t2 = np.minimum(1 / np.maximum(rate, 1e-3), 300)
    return np.where(foreground(image), t2, 0)


def enhancement(series: Array) -> NDArray[np.int16]:
    """Percent enhancement of the second time point where it exceeds 30 %; 0 elsewhere."""
    base = np.maximum(series[0], 1)
    percent = 100.0 * (series[1] - series[0]) / base
    kept = foreground(series[0]) & (percent > 30)
    return np.where(kept, np.rint(np.minimum(percent, 3000)), 0).astype(np.int16)


def temporal_snr(series: Array) -> NDArray[np.float32]:
    """Mean over standard deviation of a time series in a mask; 0 outside."""
    mean, deviation = series.mean(0), np.maximum(series.std(0), 1e-6)
    return np.where(foreground(mean), mean / deviation, 0).astype(np.float32)


def t_statistic(series: Array) -> NDArray[np.float64]:
    """t of a boxcar of six volumes in a time series, by least squares; 0 outside of a mask."""
    count = len(series)
    box = (np.arange(count) // 6 % 2) - 0.5
    box = box - box.mean()
    centred = series - series.mean(0)
    slope = np.tensordot(box, centred, 1) / (box**2).sum()
    residual = centred - box[:, None, None, None] * slope
    error = np.sqrt((residual**2).sum(0) / (count - 2) / (box**2).sum())
    return np.where(foreground(series.mean(0)), slope / np.maximum(error, 1e-9), 0)


def z_scores(image: Array) -> NDArray[np.float64]:
    """(value - mean) / deviation of a foreground, 0 outside: integers times a scale in float64."""
    mask = foreground(image)
    return np.where(mask, (image - image[mask].mean()) / image[mask].std(), 0)


# -- masks, labels and tissue probabilities -------------------------------------------------------


def classes(image: Array, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Means [count] of brightness classes in a foreground by Lloyd's iterations, and the mask."""
    mask = foreground(image)
    means = np.quantile(image[mask], (np.arange(count) + 0.5) / count)
    for _ in range(10):
        nearest = np.abs(image[mask][:, None] - means).argmin(1)
        means = np.array(
            [image[mask][nearest == n].mean() if (nearest == n).any() else means[n]
             for n in range(count)]
        )  # fmt: skip
    return means, mask


def tissues(image: Array) -> NDArray[np.uint8]:
    """Labels 1 ... 4 by brightness, 0 outside."""
    soft = smooth(image, 1)
    means, mask = classes(soft, 4)
    labels = np.abs(soft[..., None] - means).argmin(-1) + 1
    return (labels * mask).astype(np.uint8)


def partial_volumes(image: Array) -> NDArray[np.float32]:
    """The share of the second of three classes, float32: 0, 1, and values between at borders."""
    means, mask = classes(image, 3)
    low, middle, high = means
    rising = (image - low) / max(middle - low, 1e-6)
    falling = (high - image) / max(high - middle, 1e-6)
    return np.where(mask, np.clip(np.minimum(rising, falling), 0, 1), 0).astype(np.float32)


def probability(image: Array) -> NDArray[np.float32]:
    """Posterior of the second of three Gaussian classes, smoothed, float32; 0 outside."""
    means, mask = classes(image, 3)
    width = max(float(np.diff(means).min()) / 2, 1e-6)
    likelihood = np.exp(-0.5 * ((image[..., None] - means) / width) ** 2)
    posterior = likelihood[..., 1] / np.maximum(likelihood.sum(-1), 1e-300)
    return smooth(posterior, 1) * mask


def parcels(image: Array) -> NDArray[np.int16]:
    """About 200 parcels of a foreground, each voxel that of the nearest of seeds; 0 outside."""
    mask = foreground(image)
    random = np.random.default_rng(19)
    where = np.argwhere(mask)
    seeds = where[random.choice(len(where), 200, replace=False)].astype(np.float32)
    best = np.full(mask.shape, np.inf, np.float32)
    labels = np.zeros(mask.shape, np.int16)
    k, j, i = np.indices(mask.shape, np.float32)
    bright = smooth(image, 2) / np.float32(image.max()) * 60
    for n, (z, y, x) in enumerate(seeds):
        level = bright[int(z), int(y), int(x)]
        cost = (k - z) ** 2 * 4 + (j - y) ** 2 + (i - x) ** 2 + (bright - level) ** 2
        labels = np.where(cost < best, n + 1, labels).astype(np.int16)
        best = np.minimum(best, cost)
    return labels * mask


def lesions(image: Array) -> NDArray[np.uint8]:
    """A binary mask of the brightest smooth regions."""
    soft = smooth(image, 3)
    return (soft > np.quantile(soft, 0.995)).astype(np.uint8)


def distance(image: Array) -> NDArray[np.float32]:
    """Euclidean distance from the edge of a foreground within slices, at most 20; 0 outside."""
    squares = np.where(foreground(image), 400, 0).astype(np.int32)
    for axis in (-1, -2):
        moved = [np.roll(squares, n, axis) + n * n for n in range(-19, 20)]
        squares = np.min(moved, axis=0)
    return np.sqrt(squares).astype(np.float32)


# -- scans that a tool made floats of --------------------------------------------------------------


def scaled(image: Array) -> NDArray[np.float32]:
    """Integers times a slope plus an intercept, computed in float64 and stored as float32."""
    return (image * 0.303156 - 12.75).astype(np.float32)


def scaled_in_float32(image: Array) -> NDArray[np.float32]:
    """Integers times a slope in float32 arithmetic."""
    return image.astype(np.float32) * np.float32(1 / 409.6) + np.float32(0.1)


def scaled_in_float64(image: Array) -> NDArray[np.float64]:
    """Integers times a slope plus an intercept in float64."""
    return image * 0.000395134 + 0.017


def half(image: Array) -> NDArray[np.float32]:
    """A smoothed scan, rounded to half precision and stored as float32."""
    return smooth(image / image.max(), 2).astype(np.float16).astype(np.float32)


def corrected(image: Array) -> NDArray[np.float32]:
    """A scan divided by a smooth bias field: full mantissas, the noise of the scan."""
    return image / (smooth(image, 12) + np.float32(0.05 * image.max()))


def shifted(image: Array) -> NDArray[np.float32]:
    """A scan moved by a part of a voxel with linear interpolation, in float32."""
    x = image.astype(np.float32)
    for axis, part in ((-1, 0.37), (-2, 0.71), (-3, 0.23)):
        x = x * np.float32(1 - part) + np.roll(x, 1, axis) * np.float32(part)
    return x


def mean_of_series(series: Array) -> NDArray[np.float32]:
    """The mean of a time series: sums of integers over their number."""
    return series.mean(0).astype(np.float32)


# Name, scan, and how the map is made of the scan's array.
MADE: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("adc_prostatex0218", "prostatex_0218_DWI4D", lambda a: integer_adc(trace_adc(a))),
    ("adc_decubitus", "dcmqadecubitus_rorden_DWI4D", lambda a: integer_adc(direction_adc(a))),
    ("adc_philips", "dcmqaphilips_vu234480_DWI4D", lambda a: integer_adc(direction_adc(a))),
    ("t2star_ukat", "ukat_ge01_GREmag-e1", lambda a: np.rint(t2_star(a) * 10).astype(np.int16)),
    ("enhancement_nact", "breastnact_UCSFBR06_DCE4D", enhancement),
    ("mask_flair", "openms_patient12_s1-FLAIR", lambda a: foreground(a).astype(np.uint8)),
    ("mask_prostate", "prostatex_0218_T2w-tra", lambda a: foreground(a).astype(np.uint8)),
    ("lesions_flair", "openms_patient01_s1-FLAIR", lesions),
    ("tissues_t1w", "dicom4qi_anon6_T1w", tissues),
    ("tissues_t2w", "openms_patient12_s1-T2W", tissues),
    ("parcels_t1w", "niimath_anon_T1w", parcels),
    ("pve8_t1w", "coregqa_anon_T1w", lambda a: np.rint(partial_volumes(a) * 255).astype(np.uint8)),
    ("probability8_t1w", "niimath_anon_T1w",
     lambda a: np.rint(probability(a) * 255).astype(np.uint8)),
    ("phase_ukat", "ukat_ge01_GREphase-e1",
     lambda a: np.where(foreground(np.abs(a)), a, 0).astype(np.int16)),
    ("adcfloat_prostatex0218", "prostatex_0218_DWI4D", lambda a: trace_adc(a).astype(np.float32)),
    ("adcfloat_philips", "dcmqaphilips_vu234480_DWI4D",
     lambda a: direction_adc(a).astype(np.float32)),
    ("fa_stc", "dcmqastc_rorden_DWI4D", anisotropy),
    ("fa_decubitus", "dcmqadecubitus_rorden_DWI4D", anisotropy),
    ("tensor_philips", "dcmqaphilips_vu234480_DWI4D", tensors),
    ("v1_stc", "dcmqastc_rorden_DWI4D", main_direction),
    ("t2starfloat_ukat", "ukat_ge01_GREmag-e1", lambda a: t2_star(a).astype(np.float32)),
    ("tsnr_asl", "dcmqaasl_rorden_PASL4D", temporal_snr),
    ("tstat64_asl", "dcmqaasl_rorden_PASL4D", t_statistic),
    ("tstat_cord", "scttest_errsm30_fMRI4D", lambda a: t_statistic(a).astype(np.float32)),
    ("mean_asl", "dcmqaasl_rorden_PASL4D", mean_of_series),
    ("z_flair", "openms_patient12_s1-FLAIR", lambda a: z_scores(a).astype(np.float32)),
    ("z64_t1w", "openms_patient12_s1-T1W", z_scores),
    ("pve_t1w", "coregqa_anon_T1w", partial_volumes),
    ("probability_t1w", "niimath_anon_T1w", probability),
    ("distance_t2w", "openms_patient03_s1-T2W", distance),
    ("scaled_t2w", "prostatex_0218_T2w-tra", scaled),
    ("scaled32_mt", "sctunf_sub05_GRE-MToff", scaled_in_float32),
    ("scaled64_t2w", "mial_fetus01_run3-T2w", scaled_in_float64),
    ("half_knee", "pymskt_knee01_MESE-e1", half),
    ("corrected_t2w", "openms_patient12_s1-T2W", corrected),
    ("shifted_t1w", "dcmqadecubitus_rorden_T1w-fl2d", shifted),
    ("smooth_t2w", "mial_fetus01_run5-T2w", lambda a: smooth(a, 2)),
)  # fmt: skip
