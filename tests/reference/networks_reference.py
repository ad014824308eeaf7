#!/usr/bin/env python3
"""Writes data/networks_torch.safetensors: the networks, losses and optimisers of the paper in PyTorch.

Nothing large is stored: weights and inputs follow from a formula (README.md beside this file), so a test
in Rust rebuilds the very same numbers and compares its results. Everything is computed in float64 from
values that were rounded to float32 first, so the reference is the exact answer to what a float32
implementation approximates.

    python -m venv venv && venv/bin/pip install torch numpy safetensors
    venv/bin/python tests/reference/networks_reference.py
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
torch.use_deterministic_algorithms(True)

# ---------------------------------------------------------------- numbers by formula


def hashed(stream: int, n: int) -> np.ndarray:
    """splitmix64 of (stream << 32) + i, i = 0..n."""
    z = (np.uint64(stream) << np.uint64(32)) + np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(stream: int, shape, scale=1.0, offset=0.0) -> torch.Tensor:
    """offset + scale * [-1, 1), rounded to float32, held as float64."""
    n = int(np.prod(shape))
    unit = (hashed(stream, n) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    values = (offset + scale * unit).astype(np.float32).astype(np.float64)
    return torch.from_numpy(values.reshape(shape))


SAMPLES_PARAMETER, SAMPLES_INPUT = 64, 200


def sample_indices(n: int, count: int) -> np.ndarray:
    """Flat indices at which a large gradient is stored."""
    return (hashed(7, count) % np.uint64(n)).astype(np.int64)


out: dict[str, np.ndarray] = {}


def store(name: str, value, dtype=np.float32):
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    assert name not in out and np.isfinite(value).all(), name
    out[name] = np.ascontiguousarray(np.atleast_1d(value).astype(dtype))


def store_gradient(name: str, g: torch.Tensor, count: int = SAMPLES_PARAMETER):
    """In full up to 256 values, otherwise sampled; the L2 norm always."""
    flat = g.detach().reshape(-1)
    if flat.numel() <= 256:
        store(f"{name}.full", flat)
    else:
        store(f"{name}.sampled", flat[sample_indices(flat.numel(), count)])
    store(f"{name}.norm", flat.norm(), np.float64)


# ---------------------------------------------------------------- networks (science.md sections 2 and 3)

# name, c_in, c_out, kernel, stride, padding, block
GENERATOR = [
    ("x0", 2, 16, 3, 1, 0, True),
    ("x1", 16, 16, 3, 1, 0, True),
    ("x2", 16, 16, 3, 2, 1, True),
    ("x3", 16, 32, 3, 1, 0, True),
    ("x4", 32, 32, 3, 1, 0, True),
    ("x5", 32, 32, 3, 2, 1, True),
    ("x6", 32, 64, 3, 1, 0, True),
    ("x7", 64, 64, 3, 1, 0, True),
    ("x10", 96, 32, 3, 1, 0, True),
    ("x11", 32, 32, 3, 1, 0, True),
    ("x14", 48, 16, 3, 1, 0, True),
    ("x15", 16, 16, 3, 1, 0, True),
    ("u", 16, 3, 1, 1, 0, False),
]


def critic_layers(c_in: int):
    first = ("x0", c_in) + GENERATOR[0][2:]
    return [first] + GENERATOR[1:8] + [("score", 64, 1, 1, 1, 0, False)]


def parameters(layers, first_stream: int) -> dict[str, torch.Tensor]:
    """The tensors of libjrs::network::Layer::tensors(), in that order, one stream each."""
    p, stream = {}, first_stream

    def add(name, shape, scale, offset=0.0):
        nonlocal stream
        p[name] = uniform(stream, shape, scale, offset)
        stream += 1

    for name, c_in, c_out, k, _, _, block in layers:
        fan_in = c_in * k**3
        add(f"{name}.conv.weight", (c_out, c_in, k, k, k), np.sqrt(6.0 / fan_in))
        add(f"{name}.conv.bias", (c_out,), 0.1)
        if block:
            add(f"{name}.bn.gamma", (c_out,), 0.2, 1.0)
            add(f"{name}.bn.beta", (c_out,), 0.1)
            add(f"{name}.bn.mean", (c_out,), 0.2, 0.3)
            add(f"{name}.bn.var", (c_out,), 0.5, 1.0)
    return p


class Network:
    """Applies layers by name; `training` chooses batch or running statistics."""

    def __init__(self, layers, p, training: bool):
        self.layers = {l[0]: l for l in layers}
        self.p, self.training = p, training
        self.statistics = {}

    def layer(self, name, x):
        _, _, _, _, stride, padding, block = self.layers[name]
        p = self.p
        x = F.conv3d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], stride=stride, padding=padding)
        if not block:
            return x
        # Within rounding of 0 a float32 implementation may take the other slope, which moves gradients by 1e-3.
        # The inputs' streams were chosen so that no value comes that close.
        assert not self.training or x.abs().min() > 8e-7, (name, x.abs().min())
        x = F.leaky_relu(x, 0.2)
        mean, var = p[f"{name}.bn.mean"].clone(), p[f"{name}.bn.var"].clone()
        if self.training:
            self.statistics[name] = (
                x.detach().mean((0, 2, 3, 4)),
                x.detach().var((0, 2, 3, 4), unbiased=False),
            )
        x = F.batch_norm(
            x, mean, var, p[f"{name}.bn.gamma"], p[f"{name}.bn.beta"], self.training, momentum=0.1, eps=1e-3
        )
        if self.training:
            self.statistics[name] += (mean, var)
        return x

    def chain(self, names, x):
        for name in names.split():
            x = self.layer(name, x)
        return x


def upsample_concat(low, skip, crop: int):
    """Nearest x2 of `low`, then the centre of `skip`."""
    c = slice(crop, -crop)
    return torch.cat([F.interpolate(low, scale_factor=2, mode="nearest"), skip[:, :, c, c, c]], 1)


def generator(net: Network, x):
    x1 = net.chain("x0 x1", x)
    x4 = net.chain("x2 x3 x4", x1)
    x7 = net.chain("x5 x6 x7", x4)
    x11 = net.chain("x10 x11", upsample_concat(x7, x4, 4))
    return net.chain("x14 x15 u", upsample_concat(x11, x1, 16))


def critic(net: Network, x):
    return net.chain("x0 x1 x2 x3 x4 x5 x6 x7 score", x)


TRAINABLE = (".conv.weight", ".conv.bias", ".bn.gamma", ".bn.beta")


def network_case(case, layers, forward, first_stream, shape, input_stream, weight_stream, training):
    """Forward, then d sum(y * c) / d(input and every parameter)."""
    p = parameters(layers, first_stream)
    for name, value in p.items():
        value.requires_grad_(name.endswith(TRAINABLE))
    x = uniform(input_stream, shape).requires_grad_()
    net = Network(layers, p, training)
    y = forward(net, x)
    c = uniform(weight_stream, tuple(y.shape))
    functional = (y * c).sum()
    functional.backward()
    store(f"{case}.input_shape", shape, np.int64)
    store(f"{case}.output", y)
    store(f"{case}.functional", functional, np.float64)
    store_gradient(f"{case}.grad.input", x.grad, SAMPLES_INPUT)
    for name, value in p.items():
        if value.requires_grad:
            store_gradient(f"{case}.grad.{name}", value.grad)
    for name, (mean, var, running_mean, running_var) in net.statistics.items():
        store(f"{case}.batch.{name}.mean", mean)
        store(f"{case}.batch.{name}.var", var)
        store(f"{case}.running.{name}.mean", running_mean)
        store(f"{case}.running.{name}.var", running_var)
    print(f"{case}: output {tuple(y.shape)}, rms {y.detach().square().mean().sqrt():.3f}")


# ---------------------------------------------------------------- losses and warp (section 4)


def warp(moving, u, spacing: float, margin: int):
    """moving [n,c,Z,Y,X] at voxel + margin + u / spacing; u [n,3,z,y,x] = (x, y, z) mm; border replicated."""
    size = moving.shape[2:]
    axes = [torch.arange(n, dtype=u.dtype) for n in u.shape[2:]]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    place = [base + margin + u[:, i] / spacing for i, base in enumerate((x, y, z))]
    grid = torch.stack([2 * q / (n - 1) - 1 for q, n in zip(place, reversed(size))], -1)
    return F.grid_sample(moving, grid, mode="bilinear", padding_mode="border", align_corners=True)


def soft_dice(p, s):
    """[n, organs] of 2 sum(ps) / (sum p + sum s + 1e-7)."""
    a = (2, 3, 4)
    return 2 * (p * s).sum(a) / (p.sum(a) + s.sum(a) + 1e-7)


def dsc(p, s, present):
    """Mean over the batch of the mean over the organs present."""
    return ((soft_dice(p, s) * present).sum(1) / present.sum(1)).mean()


def dsc_of_soft(p, s):
    """Mean over batch and organs of 2 sum(ps) / (sum p^2 + sum s^2 + 1e-7)."""
    a = (2, 3, 4)
    return (2 * (p * s).sum(a) / ((p * p).sum(a) + (s * s).sum(a) + 1e-7)).mean()


def ncc(f, m):
    """Mean over the batch of cov / sqrt((var_f + 1e-5) (var_m + 1e-5)), population moments over the patch."""
    f, m = f.flatten(1), m.flatten(1)
    f, m = f - f.mean(1, keepdim=True), m - m.mean(1, keepdim=True)
    return ((f * m).mean(1) / ((f.square().mean(1) + 1e-5) * (m.square().mean(1) + 1e-5)).sqrt()).mean()


def local_ncc(f, m, window=9):
    """Mean over batch and the windows that lie wholly inside of the same quotient, moments over the window."""
    mean = lambda q: F.avg_pool3d(q, window, stride=1)
    vf, vm = mean(f * f) - mean(f) ** 2 + 1e-5, mean(m * m) - mean(m) ** 2 + 1e-5
    return ((mean(f * m) - mean(f) * mean(m)) / (vf * vm).sqrt()).mean()


def bending(u, h: float):
    """Mean over batch, components and interior voxels."""

    def at(dz, dy, dx):
        z, y, x = u.shape[2:]
        return u[:, :, 1 + dz : z - 1 + dz, 1 + dy : y - 1 + dy, 1 + dx : x - 1 + dx]

    def straight(d):
        return (at(*d) - 2 * at(0, 0, 0) + at(*(-i for i in d))) / h**2

    def cross(a, b):
        plus = tuple(i + j for i, j in zip(a, b))
        minus = tuple(i - j for i, j in zip(a, b))
        back = lambda d: tuple(-i for i in d)
        return (at(*plus) - at(*minus) - at(*back(minus)) + at(*back(plus))) / (4 * h**2)

    z, y, x = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    e = sum(straight(d) ** 2 for d in (x, y, z))
    e = e + 2 * (cross(x, y) ** 2 + cross(x, z) ** 2 + cross(y, z) ** 2)
    return e.mean()


def loss_case(name, value, *gradients):
    store(f"{name}.value", value, np.float64)
    for label, tensor in gradients:
        (g,) = torch.autograd.grad(value, tensor, retain_graph=True)
        store(f"{name}.grad.{label}", g)
    print(f"{name}: {value.item():.6f}")


def boxes(stream: int, shape, organs: int):
    """One-hot organs by formula: voxel's organ = hash % (organs + 1), 0 = background; channels 1..organs."""
    n, z, y, x = shape
    label = (hashed(stream, n * z * y * x) % np.uint64(organs + 1)).astype(np.int64).reshape(shape)
    return torch.from_numpy(np.stack([label == o for o in range(1, organs + 1)], 1).astype(np.float64))


def losses():
    size = (10, 11, 12)
    # DSC: soft predictions, hard target; organ 3 absent in sample 0 (both maps), organ 5 only predicted in sample 1.
    s = boxes(2000, (2, *size), 5)
    p = uniform(2001, (2, 5, *size), 0.5, 0.5)
    s[0, 2] = 0
    p[0, 2] = 0
    s[1, 4] = 0
    p.requires_grad_()
    present = torch.ones(2, 5)
    present[0, 2] = 0
    store("dsc.present", present, np.uint8)
    store("dsc.per_organ", soft_dice(p, s))
    loss_case("dsc", 1 - dsc(p, s, present), ("p", p))

    soft_p, soft_s = uniform(2002, (1, 2, *size), 0.5, 0.5), uniform(2003, (1, 2, *size), 0.5, 0.5)
    soft_p.requires_grad_()
    loss_case("dsc_of_soft", 1 - dsc_of_soft(soft_p, soft_s), ("p", soft_p))

    f = uniform(2010, (2, 1, *size))
    noise = uniform(2011, (2, 1, *size))
    m = (0.6 * f + 0.3 * noise + 0.1).float().double().requires_grad_()
    loss_case("ncc", 1 - ncc(f, m), ("moving", m))
    loss_case("local_ncc", 1 - local_ncc(f, m), ("moving", m))

    for h, name in ((1.0, "bending"), (1.5, "bending_spacing_1_5")):
        u = uniform(2020, (2, 3, *size), 2.0).requires_grad_()
        loss_case(name, bending(u, h), ("u", u))

    # Warp: the patch is larger than the output by the margin; |u| up to 9 mm leaves it, so the border counts.
    for spacing, name in ((1.0, "warp"), (2.0, "warp_spacing_2")):
        moving = uniform(2030, (2, 2, 14, 15, 16)).requires_grad_()
        u = uniform(2031, (2, 3, 8, 9, 10), 9.0).requires_grad_()
        y = warp(moving, u, spacing, 3)
        c = uniform(2032, tuple(y.shape))
        store(f"{name}.output", y)
        loss_case(name, (y * c).sum(), ("u", u), ("moving", moving))

    low = uniform(2040, (2, 3, 2, 3, 4)).requires_grad_()
    skip = uniform(2041, (2, 2, 6, 8, 10)).requires_grad_()
    y = upsample_concat(low, skip, 1)
    c = uniform(2042, tuple(y.shape))
    store("upsample_concat.output", y)
    loss_case("upsample_concat", (y * c).sum(), ("low", low), ("skip", skip))

    # Adversarial terms on score maps [n,1,7,7,7]; `sum` adds over the map and averages over the batch.
    fake = uniform(2050, (2, 1, 7, 7, 7)).requires_grad_()
    real = uniform(2051, (2, 1, 7, 7, 7), 1.0, 0.25).requires_grad_()
    for reduction in ("mean", "sum"):
        score = lambda d: (d.mean((1, 2, 3, 4)) if reduction == "mean" else d.sum((1, 2, 3, 4))).mean()
        loss_case(f"critic_loss_{reduction}", score(fake) - score(real), ("fake", fake), ("real", real))
        loss_case(f"adversarial_{reduction}", -score(fake), ("fake", fake))


def whole_loss():
    """JRS-CNN in one direction, 48^3 input: (1 - DSC) + (1 - NCC) + bending, to every generator parameter."""
    p = parameters(GENERATOR, 100)
    for name, value in p.items():
        value.requires_grad_(name.endswith(TRAINABLE))
    f, m = uniform(50002, (1, 1, 48, 48, 48)), uniform(50003, (1, 1, 48, 48, 48))
    s_f, s_m = boxes(2102, (1, 48, 48, 48), 2), boxes(2103, (1, 48, 48, 48), 2)
    u = generator(Network(GENERATOR, p, True), torch.cat([f, m], 1))
    inner = (..., slice(20, -20), slice(20, -20), slice(20, -20))
    warped, warped_labels = warp(m, u, 1.0, 20), warp(s_m, u, 1.0, 20)
    terms = {
        "dsc": 1 - dsc(warped_labels, s_f[inner], torch.ones(1, 2)),
        "ncc": 1 - ncc(f[inner], warped),
        "bending": bending(u, 1.0),
    }
    for name, value in terms.items():
        store(f"jrs_cnn.{name}", value, np.float64)
    total = sum(terms.values())
    store("jrs_cnn.total", total, np.float64)
    total.backward()
    store("jrs_cnn.u", u)
    for name, value in p.items():
        if value.requires_grad:
            store_gradient(f"jrs_cnn.grad.{name}", value.grad)
    print("jrs_cnn:", {k: round(v.item(), 5) for k, v in terms.items()})


# ---------------------------------------------------------------- optimisers (section 5)

STEPS = 4


def optimisers():
    start = uniform(2200, (12,))
    # Gradients from 1 down to 1e-5, so that the place of epsilon shows.
    scale = torch.from_numpy(np.float32(10.0) ** -(np.arange(12) // 2).astype(np.float32)).double()
    gradients = [(uniform(2210 + k, (12,)) * scale).float().double() for k in range(STEPS)]
    store("optimiser.start", start)
    store("optimiser.gradients", torch.stack(gradients))

    # TensorFlow 1's kernel: ms = 0.9 ms + 0.1 g^2; w -= lr g / sqrt(ms + eps). Its ms starts at 1.
    for name, initial in (("rmsprop_eps_inside_ms0_1", 1.0), ("rmsprop_eps_inside_ms0_0", 0.0)):
        w, ms, path = start.clone(), torch.full_like(start, initial), []
        for g in gradients:
            ms = 0.9 * ms + 0.1 * g * g
            w = w - 1e-3 * g / (ms + 1e-10).sqrt()
            path.append(w.clone())
        store(f"{name}.weights", torch.stack(path), np.float64)
        store(f"{name}.ms", ms, np.float64)

    def torch_path(name, make):
        w = start.clone().requires_grad_()
        optimiser, path = make([w]), []
        for g in gradients:
            w.grad = g.clone()
            optimiser.step()
            path.append(w.detach().clone())
        store(f"{name}.weights", torch.stack(path), np.float64)

    torch_path("rmsprop_eps_outside_ms0_0", lambda w: torch.optim.RMSprop(w, lr=1e-3, alpha=0.9, eps=1e-10))
    torch_path("adam", lambda w: torch.optim.Adam(w, lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8))


def main():
    # The formula itself, so that a port can be checked on its own.
    store("formula.stream_5", uniform(5, (8,)))
    store("formula.sample_indices_1000", sample_indices(1000, 8), np.int64)

    network_case("generator", GENERATOR, generator, 100, (1, 2, 44, 44, 44), 10000, 10001, True)
    network_case("generator_batch", GENERATOR, generator, 100, (2, 2, 44, 48, 52), 20014, 20015, True)
    network_case("generator_eval", GENERATOR, generator, 100, (1, 2, 48, 44, 44), 1020, 1021, False)
    network_case("critic", critic_layers(3), critic, 300, (2, 3, 36, 36, 36), 30000, 30001, True)
    network_case("critic_2_channels", critic_layers(2), critic, 500, (1, 2, 40, 36, 44), 40194, 40195, True)
    losses()
    whole_loss()
    optimisers()

    path = Path(__file__).parent / "data" / "networks_torch.safetensors"
    note = {"made_by": f"tests/reference/networks_reference.py, torch {torch.__version__}, float64 on the CPU"}
    save_file(dict(sorted(out.items())), path, note)
    print(f"{path.name}: {len(out)} tensors, {path.stat().st_size / 1024:.0f} KiB")


main()
