"""Reads our displacement fields with other people's programs and warps with them.

    python fields_check.py FOLDER [--tolerance-hu 0.05]

FOLDER holds fixed.mha (the grid), moving.mha, warped.mha (ours) and the same field as field_itk.nii.gz (intent
1006), field_ants.nii.gz (intent 1007), field.nrrd and field.mha. Each field is applied in SimpleITK
(DisplacementFieldTransform, Resample) and by nibabel + scipy.ndimage.map_coordinates, knowing nothing of our
code; the warped voxels must agree with ours. Also checked: what SimpleITK and nibabel see in each file (see the
documentation of libjrs::field_io). Last, labels.mha / warped_labels.mha by one-hot linear resampling.

Exit status: 0 all agree, 1 something differs, 77 a Python package is missing.
"""

import argparse
import sys
from pathlib import Path

try:
    import nibabel
    import numpy as np
    import SimpleITK as sitk
    from scipy.ndimage import map_coordinates
except ImportError as missing:
    print(missing)
    sys.exit(77)

OUTSIDE = -1000.0
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS
failures = []


def check(what, value, limit):
    verdict = "ok  " if value <= limit else "FAIL"
    print(f"{verdict} {what}: {value:.3g} (limit {limit:g})")
    if not value <= limit:
        failures.append(what)


def lps_affine(image):
    """4x4 index-to-LPS matrix of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return affine


def by_simpleitk(field, moving, grid, interpolator=sitk.sitkLinear, outside=OUTSIDE):
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    return sitk.GetArrayFromImage(sitk.Resample(moving, grid, transform, interpolator, outside))


def by_nibabel(path, moving, ras_vectors):
    """Warped [z][y][x] and where it can be compared (not within a voxel of the moving edge)."""
    image = nibabel.load(path)
    vectors = np.asarray(image.dataobj)[:, :, :, 0, :].astype(np.float64)
    if not ras_vectors:
        vectors = vectors * [-1.0, -1.0, 1.0]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in vectors.shape[:3]], indexing="ij"), -1)
    ras = index @ image.affine[:3, :3].T + image.affine[:3, 3] + vectors
    to_moving = np.linalg.inv(FLIP @ lps_affine(moving))
    place = ras @ to_moving[:3, :3].T + to_moving[:3, 3]
    data = sitk.GetArrayFromImage(moving).transpose(2, 1, 0)
    warped = map_coordinates(data.astype(np.float64), np.moveaxis(place, -1, 0), order=1, cval=OUTSIDE)
    inside = ((place > 0.01) & (place < np.array(data.shape) - 1.01)).all(-1)
    return warped.transpose(2, 1, 0), inside.transpose(2, 1, 0), image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tolerance-hu", type=float, default=0.05)
    options = parser.parse_args()
    folder, tolerance = options.folder, options.tolerance_hu

    fixed, moving = (sitk.ReadImage(str(folder / f"{n}.mha")) for n in ("fixed", "moving"))
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "warped.mha")))
    check("share of voxels outside the moving image", float((warped == OUTSIDE).mean()), 0.5)

    fields = {}
    for name in ("field.mha", "field.nrrd", "field_itk.nii.gz", "field_ants.nii.gz"):
        field = fields[name] = sitk.ReadImage(str(folder / name))
        check(f"{name}: 3-D vectors", abs(field.GetDimension() - 3) + abs(field.GetNumberOfComponentsPerPixel() - 3), 0)
        check(f"{name}: geometry, mm", float(np.abs(lps_affine(field) - lps_affine(fixed)).max()), 1e-3)
        same = np.abs(sitk.GetArrayFromImage(field) - sitk.GetArrayFromImage(fields["field.mha"])).max()
        check(f"{name}: vectors against field.mha, mm", float(same), 0)
        theirs = by_simpleitk(field, moving, fixed)
        # The outermost half voxel is inside or not by a rounding of the geometry: no more than a few voxels.
        differing = np.abs(theirs - warped) > tolerance
        check(f"{name}: share of voxels that SimpleITK warps differently", float(differing.mean()), 1e-3)
        core = differing & (theirs != OUTSIDE) & (warped != OUTSIDE)
        check(f"{name}: such voxels inside the moving image", int(core.sum()), 0)

    for name, ras_vectors, intent in (("field_itk.nii.gz", True, 1006), ("field_ants.nii.gz", False, 1007)):
        theirs, inside, image = by_nibabel(folder / name, moving, ras_vectors)
        check(f"{name}: intent code is {intent}", abs(int(image.header["intent_code"]) - intent), 0)
        check(f"{name}: qform against sform, mm", float(np.abs(image.get_qform() - image.get_sform()).max()), 1e-3)
        check(f"{name}: units are mm", int(image.header.get_xyzt_units()[0] != "mm"), 0)
        check(f"{name}: share that can be compared with scipy", 1 - float(inside.mean()), 0.6)
        check(f"{name}: scipy's warp, HU", float(np.abs(theirs - warped)[inside].max()), tolerance)

    labels = sitk.ReadImage(str(folder / "labels.mha"))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "warped_labels.mha")))
    values = [0, *sorted(set(np.unique(sitk.GetArrayFromImage(labels))) - {0})]
    one_hot = [
        by_simpleitk(
            fields["field.mha"], sitk.Cast(labels == int(v), sitk.sitkFloat64), fixed, outside=float(v == 0)
        )
        for v in values
    ]
    theirs = np.array(values)[np.argmax(one_hot, axis=0)]
    check("share of labels that differ", float((theirs != ours).mean()), 1e-3)
    print("FAILED: " + "; ".join(failures) if failures else "all agree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
