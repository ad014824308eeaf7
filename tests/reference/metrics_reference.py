"""Reference values for libjrs::metrics, computed with NumPy and SciPy only (SimpleITK for the comparison).

Writes tests/reference/data/metrics.json, which libjrs/tests/metrics_reference.rs reads:

    python tests/reference/metrics_reference.py

Definitions: those of Elmahdy's public code (moelmahdy/JRS-MTL, utils/overlap_quantification.py): directed
distances from each face-connected inner surface (ITK LabelContour) to the other surface, MSD = mean of
both sets pooled, HD95 = larger of the two numpy.percentile(., 95). One difference, measured by `compare_authors`
and printed: the authors' distance map (ITK SignedMaurerDistanceMap) is zero on the 26-connected inner boundary,
ours on the same face-connected surface that is compared. The edge of the volume is not a surface in either.
"""

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

OUT = Path(__file__).parent / "data" / "metrics.json"


def surface(mask):
    """Voxels with a face-neighbour outside the mask; the edge of the volume does not count."""
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def scores(a, b, spacing_zyx):
    """The dictionary that is stored; None where a structure is absent or has no surface."""
    if not a.any() or not b.any():
        return {"dice": None, "surface": None}
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    sa, sb = surface(a), surface(b)
    if not sa.any() or not sb.any():
        return {"dice": float(dice), "surface": None}
    out = ndimage.distance_transform_edt(~sb, sampling=spacing_zyx)[sa]
    back = ndimage.distance_transform_edt(~sa, sampling=spacing_zyx)[sb]
    return {
        "dice": float(dice),
        "surface": {
            "msd": float(np.concatenate([out, back]).mean()),
            "hd95": float(max(np.percentile(out, 95), np.percentile(back, 95))),
            "hausdorff": float(max(out.max(), back.max())),
            "mean_from_reference": float(out.mean()),
            "mean_to_reference": float(back.mean()),
        },
    }


def run_lengths(mask):
    """Lengths of alternating runs of 0 and 1, beginning with 0, x fastest (C order of [z][y][x])."""
    flat = mask.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return ([0] if flat[0] else []) + runs


def blob(shape, seed, share):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.8)
    return noise > np.quantile(noise, 1 - share)


def cases():
    """(name, reference, other, spacing x y z); arrays are [z][y][x]."""
    shape = (12, 14, 16)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    one = empty.copy()
    one[3, 4, 5] = True
    other_one = empty.copy()
    other_one[9, 1, 13] = True
    corner = empty.copy()
    corner[:5, :6, :4] = True
    slab = empty.copy()
    slab[:, 3:8, :] = True
    row = empty.copy()
    row[6, 6, 2:11] = True
    inner = empty.copy()
    inner[3:9, 3:10, 4:12] = True
    shell = inner.copy()
    shell[5:7, 5:8, 6:10] = False
    yield "isotropic blobs", blob(shape, 1, 0.2), blob(shape, 2, 0.3), (1.0, 1.0, 1.0)
    yield "anisotropic blobs", blob(shape, 3, 0.25), blob(shape, 4, 0.15), (0.9, 1.3, 3.0)
    yield "sparse noise", blob(shape, 5, 0.02), np.random.default_rng(6).random(shape) < 0.01, (1.0, 0.5, 2.5)
    yield "equal", inner, inner, (1.0, 1.2, 2.0)
    yield "hollow", inner, shell, (1.0, 1.2, 2.0)
    yield "one voxel each", one, other_one, (1.1, 0.7, 2.5)
    yield "one voxel and a row", one, row, (1.0, 1.0, 1.0)
    yield "in the corner", corner, blob(shape, 7, 0.2), (1.0, 1.0, 2.0)
    yield "slab through the volume", slab, np.roll(slab, 2, axis=1), (1.0, 2.0, 1.0)
    yield "reference absent", empty, inner, (1.0, 1.0, 1.0)
    yield "other absent", inner, empty, (1.0, 1.0, 1.0)
    yield "both absent", empty, empty, (1.0, 1.0, 1.0)
    yield "fills the volume", full, inner, (1.0, 1.0, 1.0)


def compare_authors(name, a, b, spacing):
    """Prints the authors' own pipeline (SimpleITK) beside the stored values."""
    import SimpleITK as sitk

    images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)]
    for image in images:
        image.SetSpacing(spacing)

    def directed(target, source):
        distance = sitk.Abs(sitk.SignedMaurerDistanceMap(target, squaredDistance=False, useImageSpacing=True))
        return sitk.GetArrayFromImage(distance)[sitk.GetArrayFromImage(sitk.LabelContour(source)) > 0]

    x, y = directed(images[1], images[0]), directed(images[0], images[1])
    ours = scores(a, b, spacing[::-1])["surface"]
    msd, hd95 = np.concatenate([x, y]).mean(), max(np.percentile(x, 95), np.percentile(y, 95))
    print(f"{name:25} MSD {ours['msd']:.4f} authors {msd:.4f}   HD95 {ours['hd95']:.4f} authors {hd95:.4f}")


def jacobian_case():
    """det(I + du/dx) of a smooth field on an oblique grid, by numpy.gradient and the chain rule."""
    rng = np.random.default_rng(8)
    shape, spacing = (9, 10, 11), np.array([0.9, 1.2, 2.5])
    a, b = 0.3, 0.2
    rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    direction = rz @ rx
    u = [9.0 * ndimage.gaussian_filter(rng.standard_normal(shape), 1.0) for _ in range(3)]
    u = [c.astype(np.float32).astype(np.float64).round(4) for c in u]
    # numpy.gradient gives d/dz, d/dy, d/dx along the index axes.
    along = np.array([np.gradient(c, *spacing[::-1]) for c in u])[:, ::-1]
    gradient = np.einsum("razyx,ca->zyxrc", along, direction)
    inside = np.linalg.det(gradient + np.eye(3))[2:-2, 2:-2, 2:-2].ravel()
    return {
        "size": shape[::-1],
        "spacing": spacing.tolist(),
        "direction": direction.tolist(),
        "u": [c.ravel().tolist() for c in u],
        "voxels": inside.size,
        "mean": float(inside.mean()),
        "std": float(inside.std()),
        "min": float(inside.min()),
        "max": float(inside.max()),
        "p1": float(np.percentile(inside, 1)),
        "p99": float(np.percentile(inside, 99)),
        "folded": float((inside <= 0).mean()),
        "sd_log_j": float(np.log(np.maximum(inside, 1e-9)).std()),
    }


def main():
    stored = []
    for name, a, b, spacing in cases():
        case = {"name": name, "size": a.shape[::-1], "spacing": spacing}
        case |= {"reference": run_lengths(a), "other": run_lengths(b)} | scores(a, b, spacing[::-1])
        if a.any():
            distance = ndimage.distance_transform_edt(~a, sampling=spacing[::-1]).ravel()
            case["distances"] = [[i, float(distance[i])] for i in range(0, distance.size, 97)]
        stored.append(case)
        if case["surface"]:
            compare_authors(name, a, b, spacing)
    document = {"source": "metrics_reference.py: SciPy and NumPy", "cases": stored, "jacobian": jacobian_case()}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    print(OUT, OUT.stat().st_size, "bytes;", "folded", document["jacobian"]["folded"])


if __name__ == "__main__":
    main()
