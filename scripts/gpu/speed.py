"""How fast a device is, beside PyTorch on the same one."""

import json
import re
import statistics
import subprocess
import threading

from gpu.checks import cohort, config, fresh
from gpu.state import Failed, Skipped, finish

# Slower than this many times PyTorch's best, a convolution is to be replaced.
CONV = 1.3


def torch(setting, *work):
    """What the peer measures in PyTorch; None where there is no PyTorch for this device."""
    peer = setting.here / "gpu" / "torch_peer.py"
    device = "cpu" if setting.tiny else setting.device
    command = [setting.python, peer, "--device", device, *map(str, work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if "No module named 'torch'" in done.stderr:
        return None
    if done.returncode:
        raise Failed(f"PyTorch's side failed: {done.stderr[-800:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ours(setting, *work):
    repeats = 2 if setting.tiny else 10
    return setting.jrs_json("bench", *map(str, work), "--device", setting.device, "--repeats", repeats, limit=1200)


def convolutions(setting):
    """Every layer's forward pass, input gradient and weight gradient: ours, Burn's, and PyTorch's."""
    if "layers" not in setting.run(setting.jrs, "bench", "--help", limit=60):
        raise Skipped("this build has no `jrs bench layers`")
    size = 44 if setting.tiny else 96
    layers = ours(setting, "layers", "--size", size)["layers"]
    peers = torch(setting, "layers", "--size", size)
    best = {}
    for peer in peers or []:
        key = (peer["layer"], peer["pass"])
        if peer["precision"] == "f32":  # ours are in f32; the others are for the table
            best[key] = min(best.get(key, float("inf")), peer["seconds"])
    slow, figures = [], {}
    for layer in layers:
        key = (layer["layer"], layer["pass"])
        if key in best and layer["seconds"] > CONV * best[key]:
            slow.append(f"{key[0]} {key[1]}: {layer['seconds'] / best[key]:.2f}x")
    save(setting, "convolutions", {"ours": layers, "torch": peers})
    total = {part: 1e3 * sum(layer["seconds"] for layer in layers if layer["pass"] == part)
             for part in ("forward", "input_gradient", "weight_gradient")}
    figures |= {f"{part}_ms": value for part, value in total.items()}
    figures["times_as_fast_as_Burn"] = sum(layer["burn_seconds"] for layer in layers) / sum(layer["seconds"] for layer in layers)
    if slow and not setting.tiny:
        raise Failed(f"more than {CONV} times PyTorch's f32: {', '.join(slow)}", **figures)
    return figures | ({} if peers else {"PyTorch": "not installed"})


def registration(setting):
    """The network on a whole volume."""
    size = 48 if setting.tiny else 256
    work = ["volume", "--size", size]
    rounded = {f"jrs_{precision}_seconds": ours(setting, *work, "--precision", precision)["seconds"]["median"]
               for precision in ("tf32", "bf16")}
    return rounded | against(setting, "registration", work, ["generator", "--size", size + 40])


def step(setting):
    """One iteration of JRS-GANa: a critic update before each generator update."""
    size = 76 if setting.tiny else 96
    work = ["--size", size, "--critic-steps", 1]
    return against(setting, "step", ["step", "--system", "JRS-GANa", *work], ["jrs-gana", *work])


def against(setting, name, work, peer):
    measured = ours(setting, *work)
    figures = {"jrs_seconds": measured["seconds"]["median"]}
    peers = torch(setting, *peer)
    if peers is None:
        return figures | {"PyTorch": "not installed"}
    for line in peers:
        figures[f"torch_{line['precision']}_{line['layout']}_seconds"] = statistics.median(line["seconds"])
    save(setting, name, {"ours": measured, "torch": peers})
    best = min(value for key, value in figures.items() if key.startswith("torch_f32"))
    if not setting.tiny and figures["jrs_seconds"] > best:
        raise Failed(f"slower than PyTorch in f32: {figures['jrs_seconds']:.4f} s, {best:.4f} s", **figures)
    return figures


def busy(setting):
    """How busy the GPU is while JRS-GANa trains with the paper's patches, and how long it waits for data."""
    _, cache = cohort(setting)
    folder = fresh(setting, "busy")
    iterations = 3 if setting.tiny else 300
    patch = {"patch": 76 if setting.tiny else 96}
    text = config(setting, iterations=iterations, validation={"every": 0}, checkpoint={"every": 10_000}, sampling=patch)
    (folder / "run.toml").write_text(text)
    with Sampler(setting) as sampler:
        # As a cluster of one, because a worker says for each step how long it took and waited; it hears the environment.
        said = finish(setting.start(setting.jrs, "train", "--config", folder / "run.toml", "--data", cache,
                                    "--out", folder / "store", "--logs", folder / "logs", "--device", setting.device,
                                    "--workers", "1", env={"RUST_LOG": "info,jrs_worker=debug"}), 1800, log=folder / "log")
    said += "".join(path.read_text() for path in folder.rglob("*.log"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    steps = [(float(m[1]), float(m[2])) for m in re.finditer(r"step committed.*?seconds=([\d.e-]+) wait=([\d.e-]+)", plain)]
    if not steps:
        raise Failed(f"the run committed no step: {plain[-800:]}")
    # The first third compiles kernels and fills queues.
    steps = steps[len(steps) // 3:]
    figures = {"step_seconds": statistics.median(seconds for seconds, _ in steps),
               "data_wait_share": sum(wait for _, wait in steps) / sum(seconds for seconds, _ in steps)}
    if not setting.gpu:
        return figures
    samples = sampler.samples[len(sampler.samples) // 3:]
    if not samples:
        raise Skipped("nvidia-smi gave no samples")
    figures["busy_percent"] = statistics.mean(samples)
    if figures["busy_percent"] <= 90:
        raise Failed(f"the GPU is busy {figures['busy_percent']:.0f} % of the time", **figures)
    return figures


class Sampler:
    """nvidia-smi's share of time in which a kernel ran, five times a second."""

    def __init__(self, setting):
        self.samples, self.process = [], None
        if setting.gpu:
            index = setting.device.partition(":")[2] or "0"
            self.process = subprocess.Popen(
                ["nvidia-smi", "-i", index, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"],
                stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        if self.process:
            threading.Thread(target=self.read, daemon=True).start()
        return self

    def read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.samples.append(int(line))

    def __exit__(self, *_):
        if self.process:
            self.process.terminate()
            self.process.wait()


def save(setting, name, table):
    (setting.folder("tables") / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")


CHECKS = {"convolutions": convolutions, "registration": registration, "step": step, "busy": busy}
