"""Registers two raw volumes from Python. Arguments and files as in ../c/register.c.

    LD_LIBRARY_PATH=PREFIX/lib python3 register.py model.safetensors PAIR OUT
"""

import json
import sys
from pathlib import Path

import numpy as np

import jrs


def read(pair, name, raw, dtype):
    numbers = [float(word) for word in (pair / f"{name}.txt").read_text().split()]
    dims = [int(n) for n in numbers[:3]]
    array = np.memmap(pair / raw, dtype, "r", shape=tuple(dims[::-1]))
    return jrs.Volume(array, numbers[3:6], numbers[6:9], numbers[9:18])


def main():
    pair, out = Path(sys.argv[2]), Path(sys.argv[3])
    model = jrs.Model(sys.argv[1])
    print(model.card()["training"]["system"])
    session = jrs.Session(progress=lambda *step: print(*step), log=lambda level, message: print(level, message))
    fixed, moving = (read(pair, name, f"{name}.raw", np.int16) for name in ("fixed", "moving"))
    labels = read(pair, "moving", "labels.raw", np.uint8)
    result = session.register(model, fixed, moving, labels, prealign=jrs.PREALIGN_RIGID)

    result.write(jrs.DVF_MHA, out / "dvf.mha")
    result.write(jrs.DVF_NIFTI, out / "dvf.nii.gz")
    result.write(jrs.DVF_NIFTI_ANTS, out / "dvf-ants.nii.gz")
    result.write(jrs.WARPED_NIFTI, out / "warped.nii.gz")
    result.write(jrs.LABELS_NIFTI, out / "labels.nii.gz")
    (out / "qa.json").write_text(result.qa_json())
    (out / "provenance.json").write_text(result.provenance_json())
    print("verdict", json.loads(result.qa_json())["status"])

    # The views hold what the files hold, and stay valid as long as they are used.
    u, warped = result.dvf(), result.warped()
    del result, session, model
    header, data = (out / "dvf.mha").read_bytes().split(b"ElementDataFile = LOCAL\n")
    stored = np.frombuffer(data, np.float32).reshape(*u[0].shape, 3)
    assert all(np.array_equal(stored[..., a], u[a]) for a in range(3)) and np.isfinite(warped).all()

    # Geometry that is none is an error with words, not a crash.
    try:
        jrs.Session().register(None, jrs.Volume(fixed.array, (1, 1, 0), (0, 0, 0)), moving, refine_steps=1)
        sys.exit("a spacing of 0 was accepted")
    except jrs.Error as error:
        assert error.code == 200 and "spacing" in str(error), error


main()
