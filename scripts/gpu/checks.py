"""Whether what a device computes is right."""

import array
import csv
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import time

from gpu.state import Failed, Skipped, finish, kill

# The largest difference of a displacement between a device and the CPU, mm: a fiftieth of a voxel of 5 mm contours.
FIELD_MM = 0.1
# What rounding to bf16 may change, of the largest displacement.
ROUNDED = 0.1
# Random weights displace by a thousandth of a voxel.
AMPLIFIED = 5e3
# Relative difference of a loss between devices in the first iteration after a change of device.
LOSS = 1e-3


def config(setting, **changes):
    """A run of JRS-GANa that learns within minutes (configs/demo.toml), or within seconds."""
    patch = {"sampling": {"patch": 76, "around_organs": 1.0, "window": 20, "batch": 1}, "iterations": 4000,
             "validation": {"every": 100}, "checkpoint": {"every": 500}}
    if setting.tiny:
        patch |= {"iterations": 4, "validation": {"every": 2}, "checkpoint": {"every": 2}}
        patch["sampling"]["window"] = 1
    run = {"system": "JRS-GANa", "seed": 1, "head_gain": 4.0, **patch,
           "loss": {"smoothness": 0.03, "contour_blur": 1},
           "generator": {"rule": "adam", "learning_rate": 7e-4, "schedule": "cosine", "clip_norm": 1.0},
           "critic": {"warmup_iterations": 0, "steps": 1, "every": 4,
                      "optimizer": {"rule": "rmsprop", "learning_rate": 1e-4}}}
    for name, value in changes.items():
        run[name] = {**run[name], **value} if isinstance(value, dict) else value
    return toml(run)


def toml(table, name=""):
    own = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    inner = [toml(value, f"{name}.{key}".strip(".")) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join([*([f"[{name}]"] if name else []), *own, *inner]) + "\n"


def cohort(setting):
    """The synthetic patients and their cache, made once: folders."""
    folder = setting.folder("cohort")
    done = folder / "done"
    if not done.is_file():
        preset, spacing = ("tiny", 6) if setting.tiny else ("demo", 4)
        setting.run(setting.jrs, "phantom", "--preset", preset, "--out", folder / "images", limit=600)
        setting.run(setting.jrs, "prepare", "--data", folder / "images", "--out", folder / "cache",
                    "--spacing", spacing, "--clip", -250, 250, limit=600)
        done.write_text("")
    return folder / "images", folder / "cache"


def train(setting, name, text, cache, device, *more, limit):
    folder = setting.folder(name)
    (folder / "run.toml").write_text(text)
    return setting.jrs_json("train", "--config", folder / "run.toml", "--data", cache, "--out", folder / "store",
                            "--logs", folder / "logs", "--device", device, *more, limit=limit)


def rows(setting, name, table):
    path = setting.folder(name) / "logs" / f"{table}.csv"
    if not path.is_file():
        raise Failed(f"the run left no {path}")
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fresh(setting, name):
    """An empty folder."""
    folder = setting.folder(name)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return folder


def operations(setting):
    """The conformance suites that the CPU's operations pass."""
    programs = [p for p in sorted(setting.tests.glob("*")) if p.is_file() and os.access(p, os.X_OK)]
    if not programs:
        raise Skipped(f"no test programs in {setting.tests}: scripts/build-cuda --tests makes them")
    figures = {}
    for program in programs:
        said = setting.run(program, "--test-threads", "1", limit=1200, env={"JRS_TEST_DEVICE": setting.device},
                           log=setting.folder("operations") / f"{program.name}.log")
        passed = [line for line in said.splitlines() if line.startswith("test result: ok.")]
        if not passed:
            raise Failed(f"{program.name} ran no test: {said[-500:]}")
        figures[program.name] = passed[-1].split(";")[0].removeprefix("test result: ok. ")
    return figures


def field(setting):
    """One registration by the CPU and by the device, with a network that moves something by centimetres."""
    images, cache = cohort(setting)
    fresh(setting, "field")
    # Random weights, with the statistics of one iteration, and an amplifier; no alignment, which would move something by itself.
    amplified = config(setting, iterations=1, head_gain=AMPLIFIED, generator={"learning_rate": 1e-9})
    model = train(setting, "field", amplified, cache, "cpu", limit=900)["model"]
    pairs = json.loads((images / "dataset.json").read_text())["pairs"]
    pair = next(pair for pair in pairs if pair["split"] == "test")
    scans = ["--fixed", images / pair["fixed"]["image"], "--moving", images / pair["moving"]["image"]]

    def field_of(device, precision):
        out = setting.folder("field") / f"{device.replace(':', '-')}-{precision}"
        setting.run(setting.jrs, "register", "--model", model, *scans, "--out", out, "--device", device, "--precision", precision,
                    "--align", "none", "--one-way", limit=900)
        return displacements(out / "dvf.mha")

    reference = field_of("cpu", "f32")
    figures = {"largest_displacement_mm": max(map(abs, reference))}
    if not figures["largest_displacement_mm"] > 1:
        raise Failed("the field moves nothing, so nothing is shown", **figures)
    # Rounded numbers may differ by more than f32 may, but a wrong product would differ by the displacement's own size.
    rounded = ROUNDED * figures["largest_displacement_mm"]
    problems = []
    for precision, limit in (("f32", FIELD_MM), ("tf32", rounded), ("bf16", rounded)):
        field = field_of(setting.device, precision)
        if len(field) != len(reference):
            raise Failed("the fields have different sizes", **figures)
        difference = figures[f"largest_difference_{precision}_mm"] = max(abs(a - b) for a, b in zip(reference, field))
        if not difference <= limit:
            problems.append(f"displacements in {precision} differ by {difference:.3f} mm, more than {limit:.3f} mm")
    if problems:
        raise Failed("; ".join(problems), **figures)
    return figures


def displacements(path):
    """All components of an uncompressed MetaImage field."""
    content = path.read_bytes()
    mark = b"ElementDataFile = LOCAL\n"
    values = array.array("f", content[content.index(mark) + len(mark):])
    if sys.byteorder == "big":
        values.byteswap()
    return values


def training(setting):
    """Minutes of JRS-GANa; the validation MSD has to fall."""
    _, cache = cohort(setting)
    fresh(setting, "training")
    # Ends by itself after the minutes: the checkpoint comes with SIGINT, as a user would end it.
    folder = setting.folder("training")
    (folder / "run.toml").write_text(config(setting))
    process = setting.start(setting.jrs, "train", "--config", folder / "run.toml", "--data", cache, "--out", folder / "store",
                            "--logs", folder / "logs", "--device", setting.device)
    # The tiny run is over after its few iterations, however long they take.
    clock, limit = time.monotonic(), 1800 if setting.tiny else 60 * setting.minutes
    while process.poll() is None and time.monotonic() - clock < limit:
        time.sleep(0.5)
    took = time.monotonic() - clock
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    finish(process, 300, codes=(0, 130), log=folder / "log")
    validations = rows(setting, "training", "validation")
    iterations = len(rows(setting, "training", "losses"))
    if len(validations) < 2:
        raise Failed(f"{iterations} iterations in {took:.0f} s are too few for two validations", iterations=iterations)
    first, best = validations[0]["msd_mm"], min(row["msd_mm"] for row in validations[1:])
    figures = {"iterations": iterations, "seconds_per_iteration": took / max(iterations, 1),
               "first_msd_mm": first, "best_msd_mm": best}
    # Two validations of a run of seconds show that it runs, no more.
    if not setting.tiny and not best < first:
        raise Failed(f"the validation MSD did not fall: {first:.3f} mm at first, {best:.3f} mm at best", **figures)
    return figures


def resume(setting):
    """A run changes over from the device to the CPU, and another one back."""
    _, cache = cohort(setting)
    stop, end = (2, 4) if setting.tiny else (20, 30)
    text = config(setting, iterations=end, validation={"every": 0}, checkpoint={"every": stop})
    fresh(setting, "resume-whole")
    train(setting, "resume-whole", text, cache, "cpu", limit=1800)
    whole = rows(setting, "resume-whole", "losses")
    figures = {}
    for first, second in ((setting.device, "cpu"), ("cpu", setting.device)):
        name = f"resume-{first}-{second}".replace(":", "-")
        fresh(setting, name)
        train(setting, name, text, cache, first, "--stop-after", stop, limit=1800)
        train(setting, name, text, cache, second, "--resume", limit=1800)
        losses = rows(setting, name, "losses")
        if len(losses) != end:
            raise Failed(f"{first}, then {second}: {len(losses)} iterations instead of {end}")
        # The same samples and Θ: the first iteration is the same but for rounding, and nothing jumps where it changes over.
        relative = [abs(a["total"] - b["total"]) / max(abs(b["total"]), 0.1) for a, b in zip(losses, whole)]
        key = f"{first}_to_{second}"
        figures |= {f"{key}_first": relative[0], f"{key}_behind_the_change": relative[stop], f"{key}_last": relative[-1]}
        if not relative[0] <= LOSS:
            raise Failed(f"the first loss differs by {relative[0]:.1e} between the devices", **figures)
        if not relative[stop] <= max(100 * LOSS, 3 * max(relative[:stop])):
            raise Failed(f"the loss jumps by {relative[stop]:.1e} where the device changes", **figures)
    return figures


def collective(setting):
    """Two workers on one GPU give the model of one, also when one of them is killed."""
    _, cache = cohort(setting)
    iterations = 4 if setting.tiny else 40
    text = config(setting, iterations=iterations, validation={"every": 0}, checkpoint={"every": max(2, iterations // 4)},
                  sampling={"batch": 2, "micro_batch": 1})
    name = "collective-one"
    fresh(setting, name)
    one = train(setting, name, text, cache, setting.device, limit=1800)["model_sha256"]
    kind = "nccl" if setting.gpu else "tcp"
    # Two ranks on one GPU: by NCCL's own switch (2.30 and newer), or as if they were on two hosts (older; over sockets).
    ways = [("switch", [{"NCCL_MULTI_RANK_GPU_ENABLE": "1"}] * 3), ("hosts", [{"NCCL_HOSTID": f"host{i}"} for i in range(3)])]
    figures, problems = {"one_worker": one[:12]}, []
    for way, envs in ways if setting.gpu else [("tcp", [{}] * 3)]:
        for killed in (False, True):
            case = f"{way}{'_kill' if killed else ''}"
            try:
                figures[case] = cluster(setting, f"collective-{case}", text, cache, kind, envs, killed)[:12]
                if figures[case] != one[:12]:
                    problems.append(f"{case}: the model is another than one worker's")
            except Failed as failed:
                problems.append(f"{case}: {failed}")
    # One way is enough: which one works depends on NCCL's version.
    whole = [way for way, _ in ways if figures.get(way) == figures.get(f"{way}_kill") == one[:12]]
    if setting.gpu and whole:
        return figures | {"not": "; ".join(problem[:120] for problem in problems)} if problems else figures
    if problems:
        raise Failed("\n".join(problems), **figures)
    return figures


def cluster(setting, name, text, cache, kind, envs, killed):
    """The model of a coordinator with two workers; `killed`: the second dies by kill -9 in a step, and a third comes."""
    folder = fresh(setting, name)
    (folder / "run.toml").write_text(text)
    (folder / "token").write_text(secrets.token_urlsafe(24) + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--token-file", folder / "token"]
    processes = []

    def worker(i, env):
        # The fault kills the process itself, with SIGKILL, in the middle of a reduction.
        process = setting.start(setting.jrs, "--log", "debug", "worker", "--coordinator", address, "--listen", "127.0.0.1:0",
                                "--data", cache, "--device", setting.device, "--collective", kind, *common,
                                env={**envs[i], **env})
        processes.append(process)
        return process

    try:
        processes.append(setting.start(setting.jrs, "coordinator", "--config", folder / "run.toml", "--data", cache, "--out",
                                       folder / "store", "--listen", address, "--workers", "2", *common))
        first = worker(0, {})
        second = worker(1, {"JRS_FAULT": "kill@step=2,phase=reduce"} if killed else {})
        if killed:
            finish(second, 900, codes=(-signal.SIGKILL,), log=folder / "worker-1.log")
            second = worker(2, {})
        for i, process in enumerate((first, second)):
            said = finish(process, 1200, log=folder / f"worker-{i}-end.log")
            transport = "NCCL" if kind == "nccl" else "TCP"
            if f"transport=\"{transport}" not in said and f"transport=\\\"{transport}" not in said:
                raise Failed(f"worker {i} did not use {transport}: {said[-800:]}")
        finish(processes[0], 120, log=folder / "coordinator.log")
    finally:
        for process in processes:
            if process.poll() is None:
                kill(process)
                process.communicate()
    return sha256(next((folder / "store").rglob("model.safetensors")))


CHECKS = {"operations": operations, "field": field, "training": training, "resume": resume, "collective": collective}
