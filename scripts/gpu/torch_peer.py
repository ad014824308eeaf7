"""The same work in PyTorch on the same device: f32, TF32 and bf16, both memory layouts, cuDNN choosing its algorithms by time, called
from Python and as CUDA graphs.

    torch_peer.py --device cuda:0 generator|jrs-gana|layers --size N

prints a JSON line for every combination: seconds of every repeat (one number for layers).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import pytorch_peer  # noqa: E402

# Channels in and out, and stride, of the 3x3x3 layers in the order of the network.
LAYERS = [("x0", 2, 16, 1), ("x1", 16, 16, 1), ("x2", 16, 16, 2), ("x3", 16, 32, 1), ("x4", 32, 32, 1), ("x5", 32, 32, 2),
          ("x6", 32, 64, 1), ("x7", 64, 64, 1), ("x10", 96, 32, 1), ("x11", 32, 32, 1), ("x14", 48, 16, 1), ("x15", 16, 16, 1)]


def layers(edge):
    """Each layer with the edge of its input, for a patch of `edge` voxels."""
    for name, c_in, c_out, stride in LAYERS:
        if name in ("x10", "x14"):
            edge *= 2  # upsampled before it
        yield name, c_in, c_out, stride, edge
        edge = (edge - 1) // 2 + 1 if stride == 2 else edge - 2


def precisions(device):
    """Name, whether matrix units may round f32 to TF32, autocast's type."""
    yield "f32", False, None
    if device.startswith("cuda"):
        yield "tf32", True, None
        yield "bf16", True, torch.bfloat16


def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(run, device, repeats):
    for _ in range(3):  # cuDNN tries its algorithms
        run()
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def passes(c_in, c_out, stride, edge, layout, kind):
    """The three passes of one layer, each alone. In bf16 the tensors are bf16: a cast is not the layer's work."""
    kind = kind or torch.float32
    x = torch.randn(2, c_in, edge, edge, edge, dtype=kind)
    weight = torch.randn(c_out, c_in, 3, 3, 3, dtype=kind)
    if layout == "channels_last_3d":
        x, weight = (t.to(memory_format=torch.channels_last_3d) for t in (x, weight))
    padding = stride - 1
    y = F.conv3d(x, weight, None, stride, padding)
    g = torch.randn_like(y)

    def backward(wanted):
        return lambda: torch.ops.aten.convolution_backward(
            g, x, weight, None, [stride] * 3, [padding] * 3, [1] * 3, False, [0] * 3, 1, wanted)

    yield "forward", lambda: F.conv3d(x, weight, None, stride, padding)
    yield "input_gradient", backward([True, False, False])
    yield "weight_gradient", backward([False, True, False])


def recorded(run):
    """`run` as a CUDA graph, which is replayed without Python in between."""
    # On a stream of its own, and with gradients made while it is recorded: what torch.cuda.graph asks for.
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def work(args, layout, kind, recordable=False):
    """One repeat of the work, without what prepares it."""
    if args.work == "generator":
        return pytorch_peer.generator(args.size, layout, kind or torch.float32)
    step = pytorch_peer.step(args.size, layout, True, args.critic_steps, recordable)
    type_of_device = args.device.partition(":")[0]

    def run():
        with torch.autocast(type_of_device, kind, enabled=kind is not None):
            step()

    return run


def settings(device):
    """Every precision in every layout: what describes it, and the type of its tensors. TF32 is switched on the way."""
    for precision, tf32, kind in precisions(device):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for layout in ("eager", "channels_last_3d"):
            yield {"precision": precision, "layout": layout, "version": torch.__version__}, layout, kind


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["generator", "jrs-gana", "layers"])
    parser.add_argument("--device", required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--critic-steps", type=int, default=1)
    args = parser.parse_args()
    torch.set_default_device(args.device)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    repeats = 10 if args.device.startswith("cuda") else 2
    for about, layout, kind in settings(args.device):
        if args.work == "layers":
            for name, c_in, c_out, stride, edge in layers(args.size):
                for part, run in passes(c_in, c_out, stride, edge, layout, kind):
                    seconds = sorted(timed(run, args.device, repeats))[repeats // 2]
                    print(json.dumps({"layer": name, "pass": part, "seconds": seconds, **about}), flush=True)
        else:
            seconds = timed(work(args, layout, kind), args.device, repeats)
            print(json.dumps({"seconds": seconds, **about}), flush=True)
    if args.work == "layers" or not args.device.startswith("cuda"):
        return
    # Last: a recording that fails can leave the device unusable for what comes behind it.
    for about, layout, kind in settings(args.device):
        try:
            seconds = timed(recorded(work(args, layout, kind, recordable=True)), args.device, repeats)
        except RuntimeError as error:
            return print(f"no CUDA graph of {about}: {error}", file=sys.stderr)
        print(json.dumps({"seconds": seconds, **about, "layout": f"{layout}_graph"}), flush=True)


if __name__ == "__main__":
    main()
