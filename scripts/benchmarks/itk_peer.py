"""SimpleITK's distance transform and surface distances, and elastix, as jrs is timed against them."""

import argparse
import json
import resource
import time

import numpy as np


def five_balls(edge, shift):
    """The label map of `jrs bench` (cli/src/commands/bench/mod.rs)."""
    unit = edge / 16
    z, y, x = np.meshgrid(*[np.arange(edge)] * 3, indexing="ij", sparse=True)
    labels = np.zeros((edge,) * 3, np.uint8)
    for organ, (cx, cy, cz) in reversed(list(enumerate([(4, 4, 6), (11, 4, 7), (4, 11, 8), (11, 11, 9), (8, 8, 4)], 1))):
        inside = (x - unit * cx - shift) ** 2 + (y - unit * cy) ** 2 + (z - unit * cz) ** 2 < (2.5 * unit) ** 2
        labels[inside] = organ
    return labels


def surfaces(size):
    """As the authors do it (science.md section 7): LabelContour, SignedMaurerDistanceMap, both directions."""
    import SimpleITK as sitk

    maps = [sitk.GetImageFromArray(five_balls(size, shift)) for shift in (0, 3)]

    def run():
        for organ in range(1, 6):
            masks = [m == organ for m in maps]
            # Views of pixels that the images in these lists own.
            contours = [sitk.LabelContour(m) for m in masks]
            distances = [sitk.Abs(sitk.SignedMaurerDistanceMap(m, squaredDistance=False, useImageSpacing=True)) for m in masks]
            on = [sitk.GetArrayViewFromImage(c) != 0 for c in contours]
            to = [sitk.GetArrayViewFromImage(d) for d in distances]
            directed = to[1][on[0]], to[0][on[1]]
            np.concatenate(directed).mean(), max(np.percentile(d, 95) for d in directed)

    return run


def distance(size):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray((five_balls(size, 0) > 0).astype(np.uint8))
    return lambda: sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)


def make_pair(size, out):
    """Two CT-like volumes of 1 mm voxels, the second moved by a smooth field of up to 8 mm and with other noise."""
    import SimpleITK as sitk

    draw = np.random.default_rng(1)
    axis = np.linspace(-1, 1, size)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)

    def scan(dx, dy):
        body = ((x / 0.8) ** 2 + (y / 0.55) ** 2 + 0 * z) < 1
        hu = np.where(body, -90.0, -1000.0)
        for cx, cy, cz, r, value in [(0, 0, 0, 0.3, 40), (-0.45, 0.1, 0.1, 0.15, 600), (0.45, 0.1, 0.1, 0.15, 600), (0.1, -0.25, -0.2, 0.18, 5)]:
            hu = np.where((x + dx - cx) ** 2 + (y + dy - cy) ** 2 + (z - cz) ** 2 < r * r, value, hu)
        return sitk.GetImageFromArray((hu + draw.normal(0, 8, (size,) * 3)).astype(np.int16))

    bend = 16 / size * np.sin(2 * x) * np.cos(2 * z)
    sitk.WriteImage(scan(0 * bend, 0 * bend), f"{out}/fixed.nii.gz")
    sitk.WriteImage(scan(bend, -bend), f"{out}/moving.nii.gz")


def elastix(fixed, moving, out, threads):
    """science.md section 8: Par0035-like, after an affine stage as jrs has one too."""
    import os

    import itk

    os.makedirs(out, exist_ok=True)
    fixed, moving, out = map(os.path.abspath, (fixed, moving, out))
    os.chdir(out)  # transformix leaves the field where it is started
    images = [itk.imread(f, itk.F) for f in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    common = {"MaximumNumberOfIterations": "100", "NumberOfSpatialSamples": "2000", "NewSamplesEveryIteration": "true",
              "ImageSampler": "RandomCoordinate", "NumberOfResolutions": "3", "WriteResultImage": "false"}
    affine = parameters.GetDefaultParameterMap("affine", 3)
    bspline = parameters.GetDefaultParameterMap("bspline", 3, 10.0)
    for parameter_map in (affine, bspline):
        for key, value in common.items():
            parameter_map[key] = [value]
    bspline["Metric"] = ["AdvancedMattesMutualInformation"]
    bspline["NumberOfHistogramBins"] = ["32"]
    bspline["Optimizer"] = ["AdaptiveStochasticGradientDescent"]
    bspline["ASGDParameterEstimationMethod"] = ["DisplacementDistribution"]
    bspline["WriteResultImage"] = ["true"]
    parameters.AddParameterMap(affine)
    parameters.AddParameterMap(bspline)
    # The number of threads for all of ITK: elastix's own option crashes with more than one thread on some processors (itk 5.4.7).
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(threads)
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    result, transform = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    itk.imwrite(result, f"{out}/warped.nii.gz")
    field = itk.transformix_deformation_field(images[1], transform)
    itk.imwrite(field, f"{out}/field.nii.gz")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["surfaces", "distance", "make-pair", "elastix"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    parser.add_argument("--fixed")
    parser.add_argument("--moving")
    args = parser.parse_args()
    if args.work == "make-pair":
        return make_pair(args.size, args.out)
    if args.work == "elastix":
        return elastix(args.fixed, args.moving, args.out, args.threads)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(args.threads)
    run = surfaces(args.size) if args.work == "surfaces" else distance(args.size)
    run()
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
