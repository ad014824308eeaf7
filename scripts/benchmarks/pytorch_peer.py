"""The method's network and training step in PyTorch, as a user would write them: what jrs is timed against.

    pytorch_peer.py WORK --size N [--layout eager | channels_last_3d] [--critic-steps N] --repeats N

prints one JSON line: seconds of every repeat and the peak resident memory. Start it with large buffers kept
(GLIBC_TUNABLES, see compare.py), which is faster than the allocator's default.
"""

import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn


def block(c_in, c_out, stride=1):
    return nn.Sequential(
        nn.Conv3d(c_in, c_out, 3, stride, padding=stride - 1),
        nn.LeakyReLU(0.2),
        nn.BatchNorm3d(c_out, eps=1e-3, momentum=0.1),
    )


def crop(x, n):
    return x[:, :, n:-n, n:-n, n:-n]


class Contracting(nn.Module):
    """x0..x7 of both networks."""

    def __init__(self, c_in):
        super().__init__()
        widths = [(c_in, 16), (16, 16), (16, 16, 2), (16, 32), (32, 32), (32, 32, 2), (32, 64), (64, 64)]
        self.blocks = nn.ModuleList(block(*w) for w in widths)

    def forward(self, x):
        outputs = []
        for layer in self.blocks:
            x = layer(x)
            outputs.append(x)
        return outputs


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = Contracting(2)
        self.x10, self.x11 = block(96, 32), block(32, 32)
        self.x14, self.x15 = block(48, 16), block(16, 16)
        self.u = nn.Conv3d(16, 3, 1)

    def forward(self, images):
        x = self.down(images)
        up = lambda t: F.interpolate(t, scale_factor=2, mode="nearest")
        y = self.x11(self.x10(torch.cat([up(x[7]), crop(x[4], 4)], 1)))
        y = self.x15(self.x14(torch.cat([up(y), crop(x[1], 16)], 1)))
        return self.u(y)


class Critic(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down = Contracting(channels)
        self.score = nn.Conv3d(64, 1, 1)

    def forward(self, x):
        return self.score(self.down(x)[7]).mean((1, 2, 3, 4))


def warp(source, u, margin):
    """source at voxel + margin + u; u [n,3,z,y,x] in voxels; border replicated."""
    size = source.shape[2:]
    axes = [torch.arange(n, dtype=u.dtype) for n in u.shape[2:]]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    place = [base + margin + u[:, i] for i, base in enumerate((x, y, z))]
    grid = torch.stack([2 * q / (n - 1) - 1 for q, n in zip(place, reversed(size))], -1)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)


def one_minus_ncc(f, m):
    f, m = f.flatten(1), m.flatten(1)
    f, m = f - f.mean(1, keepdim=True), m - m.mean(1, keepdim=True)
    return 1 - ((f * m).mean(1) / ((f.square().mean(1) + 1e-5) * (m.square().mean(1) + 1e-5)).sqrt()).mean()


def one_minus_dsc(p, s):
    a = (2, 3, 4)
    return 1 - (2 * (p * s).sum(a) / (p.sum(a) + s.sum(a) + 1e-7)).mean()


def bending(u):
    at = lambda dz, dy, dx: u[:, :, 1 + dz : u.shape[2] - 1 + dz, 1 + dy : u.shape[3] - 1 + dy, 1 + dx : u.shape[4] - 1 + dx]
    energy = sum((at(*d) - 2 * at(0, 0, 0) + at(*(-i for i in d))) ** 2 for d in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    for p, m in (((1, 1, 0), (1, -1, 0)), ((1, 0, 1), (1, 0, -1)), ((0, 1, 1), (0, 1, -1))):
        minus = lambda d: tuple(-i for i in d)
        energy = energy + 2 * ((at(*p) - at(*m) - at(*minus(m)) + at(*minus(p))) / 4) ** 2
    return energy.mean()


def rmsprop(network, recordable):
    return torch.optim.RMSprop(network.parameters(), lr=1e-5, alpha=0.9, eps=1e-10, capturable=recordable)


def generator(size, layout, dtype):
    net = Generator().eval().to(dtype)
    x = (torch.rand(1, 2, size, size, size) * 2 - 1).to(dtype)
    if layout == "channels_last_3d":
        net, x = net.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)

    def run():
        with torch.inference_mode():
            net(x)

    return run


def onnx(size, threads):
    """The same network in onnxruntime, f32: exported by PyTorch, all optimisations on."""
    import tempfile

    import onnxruntime

    net, x = Generator().eval(), torch.rand(1, 2, size, size, size) * 2 - 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(net, (x,), f"{folder}/generator.onnx", input_names=["x"], dynamo=False)
        session = onnxruntime.InferenceSession(f"{folder}/generator.onnx", options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def step(size, layout, adversarial, critic_steps, recordable=False):
    """One iteration: `critic_steps` critic updates, then the generator's; one patch pair in both directions. `recordable`: as a CUDA graph."""
    net, critic = Generator(), Critic(3) if adversarial else None
    images = torch.rand(2, 1, size, size, size) * 2 - 1
    both = torch.cat([images, images.flip(0)], 1)
    if layout == "channels_last_3d":
        both = both.to(memory_format=torch.channels_last_3d)
        for network in (net, critic):
            if network is not None:
                network.to(memory_format=torch.channels_last_3d)
    labels = torch.randint(0, 6, (2, size, size, size))
    masks = torch.stack([labels == organ for organ in range(1, 6)], 1).float()
    # Moving image and contours of both directions, and the fixed ones on the output grid.
    source = torch.cat([images.flip(0), masks.flip(0)], 1)
    fixed, fixed_masks = crop(images, 20), crop(masks, 20)
    optimizer = rmsprop(net, recordable)
    critic_optimizer = rmsprop(critic, recordable) if adversarial else None

    def scores(warped):
        fake = torch.cat([fixed, warped[:, :1], warped[:, 1:].sum(1, keepdim=True)], 1)
        real = torch.cat([fixed, fixed, fixed_masks.sum(1, keepdim=True)], 1)
        both = critic(torch.cat([fake, real]))
        return both[:2].mean(), both[2:].mean()

    def run():
        for _ in range(critic_steps if adversarial else 0):
            with torch.no_grad():
                warped = warp(source, net(both), 20)
            fake, real = scores(warped)
            critic_optimizer.zero_grad()
            (fake - real).backward()
            critic_optimizer.step()
            with torch.no_grad():
                for name, p in critic.named_parameters():
                    if p.dim() == 5 or name.endswith(".0.bias"):
                        p.clamp_(-0.01, 0.01)
        u = net(both)
        warped = warp(source, u, 20)
        loss = one_minus_ncc(fixed, warped[:, :1]) + one_minus_dsc(warped[:, 1:], fixed_masks) + bending(u)
        if adversarial:
            for p in critic.parameters():
                p.requires_grad_(False)
            loss = loss - 0.01 * scores(warped)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if adversarial:
            for p in critic.parameters():
                p.requires_grad_(True)

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["generator", "onnx", "jrs-cnn", "jrs-gana"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--layout", choices=["eager", "channels_last_3d"], default="eager")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the generator")
    parser.add_argument("--critic-steps", type=int, default=5)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.work == "generator":
        run = generator(args.size, args.layout, getattr(torch, args.dtype))
    elif args.work == "onnx":
        run = onnx(args.size, args.threads)
    else:
        run = step(args.size, args.layout, args.work == "jrs-gana", args.critic_steps)
    run()
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak_rss_mb": peak, "version": torch.__version__}))


if __name__ == "__main__":
    main()
