"""Runs every row of the table in turn, jrs and its peer alternating, and prints Markdown with the ratios.

    compare.py --jrs target/release/jrs [--rounds 3] [--repeats 3] [--rows generator,volume] [--json FILE]

A ratio is the median over all rounds of one side over that of the other, within this one run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Freed large buffers stay with the process instead of going back to the system and being mapped anew.
KEEP_BUFFERS = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=268435456"}


def last_json(command, env=None):
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


class Bench:
    def __init__(self, args):
        self.args, self.threads = args, str(args.threads)

    def jrs(self, *work):
        """Median seconds and peak memory of `jrs bench`; a round is one process, which warms up first."""
        common = ["--threads", self.threads, "--repeats", str(self.args.repeats), "--json"]
        out = last_json([self.args.jrs, "bench", *work, *common])
        return [out["seconds"]["median"]], out["peak_rss_mb"]

    def peer(self, script, *work, env=None):
        common = ["--threads", self.threads, "--repeats", str(self.args.repeats)]
        out = last_json([sys.executable, HERE / script, *work, *common], env)
        return [statistics.median(out["seconds"])], out["peak_rss_mb"]

    def torch(self, *work, keep_buffers=True):
        """The better of the two memory layouts."""
        env = KEEP_BUFFERS if keep_buffers else None
        layouts = [self.peer("pytorch_peer.py", *work, "--layout", l, env=env) for l in ("eager", "channels_last_3d")]
        return min(layouts, key=lambda measured: measured[0][0])

    def alternating(self, ours, theirs):
        sides = ([], []), ([], [])
        for _ in range(self.args.rounds):
            for (seconds, peaks), side in zip(sides, (ours, theirs)):
                s, peak = side()
                seconds.extend(s)
                peaks.append(peak)
        return [(statistics.median(seconds), max(p or 0 for p in peaks)) for seconds, peaks in sides]


def network_row(name, goal, ours, theirs, memory_goal=None, keep_buffers=True, against="PyTorch f32", needs_amx=False):
    def row(bench):
        if needs_amx and not has_amx():
            print(f"SKIPPED: {name}: this processor has no AMX", file=sys.stderr)
            return []
        peer = lambda: bench.torch(*theirs, keep_buffers=keep_buffers)
        (a, mem_a), (b, mem_b) = bench.alternating(lambda: bench.jrs(*ours), peer)
        rows = [(name, against, a, b, "s", goal)]
        if memory_goal:
            rows.append((f"{name}: peak memory", against, mem_a, mem_b, "MB", memory_goal))
        return rows

    return row


def onnx_row(bench):
    ours = lambda: bench.jrs("generator", "--size", "96")
    (a, _), (b, _) = bench.alternating(ours, lambda: bench.peer("pytorch_peer.py", "onnx", "--size", "96"))
    return [("generator, 96^3 patch", "onnxruntime f32", a, b, "s", 0.6)]


def growth(bench):
    """How cost grows: per voxel of the result, by size, precision and threads."""
    print("| input | precision | threads | s | ns per output voxel | peak MB |\n|---|---|---:|---:|---:|---:|", flush=True)
    precisions = ["f32", "bf16"] if has_amx() else ["f32"]
    for size in (64, 96, 136, 200, 256, 296, 360):
        for precision in precisions:
            for threads in range(1, bench.args.threads + 1) if size in (96, 200) else [bench.args.threads]:
                command = [bench.args.jrs, "bench", "generator", "--size", str(size), "--precision", precision, "--repeats", str(bench.args.repeats)]
                out = last_json([*command, "--threads", str(threads), "--json"])
                seconds, voxels = out["seconds"]["median"], (size - 40) ** 3
                print(f"| {size}^3 | {precision} | {threads} | {seconds:.3g} | {1e9 * seconds / voxels:.0f} | {out['peak_rss_mb']:.0f} |", flush=True)


def has_amx():
    return "amx_bf16" in Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else False


def peer_row(name, peer, goal, ours, theirs):
    def row(bench):
        (a, _), (b, _) = bench.alternating(lambda: bench.jrs(*ours), lambda: bench.peer("itk_peer.py", *theirs))
        return [(name, peer, a, b, "s", goal)]

    return row


def precisions(jrs):
    """What `jrs register --precision` offers and runs on this machine; [None] where there is no such option."""
    usage = subprocess.run([jrs, "register", "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    if "--precision" not in usage:
        return [None]
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    return ["f32", "bf16"] if "amx_bf16" in flags else ["f32"]


def register_row(bench):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, HERE / "itk_peer.py", "make-pair", "--size", "256", "--out", folder], check=True)
        files = {name: f"{folder}/{name}.nii.gz" for name in ("fixed", "moving")}
        subprocess.run([bench.args.jrs, "model", "untrained", "--out", f"{folder}/model.safetensors"], check=True, stdout=subprocess.DEVNULL)

        def timed(command):
            script = "import subprocess,sys,time;t=time.perf_counter();subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL);print(time.perf_counter()-t)"
            done = subprocess.run([sys.executable, "-c", script, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
            return [float(done.stdout)], None

        ours = [bench.args.jrs, "register", "--model", f"{folder}/model.safetensors", "--fixed", files["fixed"], "--moving", files["moving"],
                "--out", f"{folder}/jrs", "--threads", bench.threads]
        theirs = [sys.executable, HERE / "itk_peer.py", "elastix", "--fixed", files["fixed"], "--moving", files["moving"], "--out", f"{folder}/elastix",
                  "--threads", bench.threads]
        rows = []
        for precision in precisions(bench.args.jrs):
            more = ["--precision", precision] if precision else []
            (a, _), (b, _) = bench.alternating(lambda: timed(ours + more + bench.args.register_options.split()), lambda: timed(theirs))
            name = f"jrs register{f' in {precision}' if precision else ''}, 256^3, files to files"
            rows.append((name, "elastix MI, 100 iterations", a, b, "s", 0.2))
    return rows


def sampling_row(bench):
    (a, _), (b, _) = bench.alternating(
        lambda: bench.jrs("sampling", "--size", "96"), lambda: bench.jrs("step", "--system", "JRS-CNN", "--size", "96")
    )
    return [("cropping and augmenting one iteration's patches, 96^3", "jrs, the JRS-CNN step", a, b, "s", 0.05)]


ROWS = {
    "generator": network_row("generator, 96^3 patch", 0.6, ("generator", "--size", "96"), ("generator", "--size", "96")),
    # With large buffers kept PyTorch needs more than 24 GB here.
    "volume": network_row(
        "generator, 256^3 volume", 0.6, ("volume", "--size", "256"), ("generator", "--size", "296"), memory_goal=0.3, keep_buffers=False
    ),
    "generator-bf16": network_row(
        "generator, 96^3 patch, bf16", 0.5, ("generator", "--size", "96", "--precision", "bf16"), ("generator", "--size", "96", "--dtype", "bfloat16"),
        against="PyTorch bf16", needs_amx=True,
    ),
    "volume-bf16": network_row(
        "generator, 256^3 volume, bf16", 0.5, ("volume", "--size", "256", "--precision", "bf16"), ("generator", "--size", "296", "--dtype", "bfloat16"),
        memory_goal=0.3, against="PyTorch bf16", needs_amx=True,
    ),
    "onnx": onnx_row,
    "step": network_row("JRS-CNN step, 96^3", 1.0, ("step", "--system", "JRS-CNN"), ("jrs-cnn", "--size", "96")),
    "gan": network_row(
        "JRS-GANa iteration with 5 critic steps, 96^3", 1.0, ("step", "--system", "JRS-GANa", "--critic-steps", "5"), ("jrs-gana", "--size", "96")
    ),
    "register": register_row,
    "surfaces": peer_row("MSD and HD95 of 5 organs, 256^3", "SimpleITK", 0.5, ("surfaces", "--size", "256"), ("surfaces", "--size", "256")),
    "distance": peer_row("distance transform, 256^3", "SimpleITK", 0.5, ("distance", "--size", "256"), ("distance", "--size", "256")),
    "sampling": sampling_row,
}


def processor():
    names = [l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jrs", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", default=",".join(ROWS), help=", ".join(ROWS))
    parser.add_argument("--register-options", default="", help="more options for jrs register, in one string")
    parser.add_argument("--growth", action="store_true", help="instead: how the generator's cost grows with size and threads")
    parser.add_argument("--json")
    args = parser.parse_args()
    bench, results = Bench(args), []
    print(f"{processor()}, {args.threads} threads, {args.rounds} rounds of {args.repeats} repeats\n", flush=True)
    if args.growth:
        return growth(bench)
    print("| work | against | jrs | peer | ratio | goal |\n|---|---|---:|---:|---:|---:|", flush=True)
    for name in args.rows.split(","):
        for work, peer, ours, theirs, unit, goal in ROWS[name](bench):
            ratio = ours / theirs
            mark = "" if ratio <= goal else " (missed)"
            print(f"| {work} | {peer} | {ours:.3g} {unit} | {theirs:.3g} {unit} | {ratio:.2f} | {goal}{mark} |", flush=True)
            results.append({"work": work, "peer": peer, "jrs": ours, "theirs": theirs, "unit": unit, "ratio": ratio, "goal": goal})
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
