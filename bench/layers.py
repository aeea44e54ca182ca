#!/usr/bin/env python3
"""Where the time of a well-known net goes: each operator with one thread and with all, against the machine's peak.

Multiplications are counted as if computed directly, so Winograd convolutions may exceed the peak.
"""
import argparse
import math
import os
import statistics
import time

import numpy as np
import zoo
from caffe2._core.net import run_bound

from caffe2._core import predictor, threads
from caffe2._core.args import Args
from caffe2.ops.kernels import dispatch
from caffe2.python import workspace


class Subject:
    """A bound net whose operators can run one by one."""

    def __init__(self, net):
        if net.train:
            net.feed()
            workspace.CreateNet(net.model.net)
            self.blobs = workspace.C.Workspace.current
            self.bound, self.definition = self.blobs.nets[net.net.name], net.net
        else:
            predictor.BATCH_MEMORY = 1 << 60            # whole batches go through every operator
            self.predictor = predictor.Predictor(net.init_net(), net.net)
            self.predictor.run([net.data])
            self.blobs, self.bound, self.definition = (
                self.predictor.workspace, self.predictor.net, self.predictor.definition)

    def shape(self, name):
        """() of what is no tensor, or does not exist yet."""
        exists = name in self.blobs.blobs and self.blobs[name].is_tensor
        return self.blobs[name].tensor().shape if exists else ()

    def work(self):
        """Floating-point operations and the shape of the output of each operator."""
        result = []
        for op, bound in zip(self.definition.op, self.bound.operators, strict=True):
            count = flops(op, [self.shape(name) for name in op.input])
            run_bound(bound)
            shape = self.shape(op.output[0])
            filters = {"Conv": [1], "ConvFused": [1], "SeparableConv": [1, 3]}.get(op.type)
            if filters:
                count = 2 * shape[0] * math.prod(shape[2:]) * sum(math.prod(self.shape(op.input[i])) for i in filters)
            result.append((count, shape))
        return result

    def measure(self, counts, rounds):
        """Median milliseconds of the net and of each operator, for each number of threads."""
        samples = {n: [] for n in counts}
        for _ in range(rounds):
            for n in counts:
                threads.set_num_threads(n)
                samples[n].append(self.bound.benchmark(1, 2, True))
        return {n: [statistics.median(column) for column in zip(*rows, strict=True)] for n, rows in samples.items()}


def flops(op, shapes):
    """Of the gradients of a convolution, or of a product of matrices; 0 of others."""
    if op.type == "ConvGradient":
        filters = math.prod(shapes[1][1:])
        bias = not Args(op).bool("no_bias")
        return 2 * math.prod(shapes[2]) * filters * (len(op.output) - bias)
    if op.type in ("FC", "FCGradient"):
        return 2 * shapes[0][0] * math.prod(shapes[1]) * (2 if op.type == "FCGradient" else 1)
    return 0


def peak(n, channels=128, size=62):
    """GFLOP/s of a convolution, without Winograd's algorithm, whose filters and images lie in the caches."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    x = dispatch.aligned((1, channels // 16, size, size, 16))
    x[...] = rng.standard_normal(x.shape)
    run = dispatch.Conv16(dispatch.level(dispatch.isa()), w, (size, size), pad=(1, 1), size=(size, size),
                          winograd=False)
    y, best = run(x, nth=n), math.inf
    for _ in range(100):
        start = time.perf_counter()
        run(x, y=y, nth=n)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * w.size * size**2 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=zoo.NETS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--least", type=float, default=0.0, help="leave out operators of less than so many ms")
    args = parser.parse_args()
    counts = sorted({1, len(os.sched_getaffinity(0))})
    peaks = {n: peak(n) for n in counts}
    subject = Subject(zoo.NETS[args.net](args.batch, **({"train": True} if args.train else {})))
    work = subject.work()
    times = subject.measure(counts, args.rounds)
    print(f"{args.net}, batch {args.batch}{', training' * args.train}")
    for n in counts:
        print(f"{n} thread{'s' * (n > 1)}: {times[n][0]:.3g} ms, sum of operators {sum(times[n][1:]):.3g} ms, "
              f"peak {peaks[n]:.0f} GFLOP/s")
    columns = [f"{f'ms, {n}':>8} {'of peak':>7}" for n in counts]
    print(f"{'':4} {'operator':22} {'output':20} {'MFLOP':>8}", *columns, f"{'faster':>6}")
    for i, (op, (count, shape)) in enumerate(zip(subject.definition.op, work, strict=True)):
        row = [times[n][i + 1] for n in counts]
        if row[-1] < args.least:
            continue
        mega = f"{count / 1e6:.4g}" if count else ""
        line = f"{i:4} {op.type:22} {'x'.join(map(str, shape)):20} {mega:>8} "
        for n, t in zip(counts, row, strict=True):
            line += f"{t:8.3f} " + (f"{count / 1e6 / t / peaks[n]:7.0%} " if count else " " * 8)
        print(line + f"{row[0] / row[-1]:6.2f}")


if __name__ == "__main__":
    main()
