#!/usr/bin/env python3
"""How the time of inference grows: ResNet-50 with batch, image size and threads, convolutions with channels."""
import os
import statistics
import time

import numpy as np
import zoo

from caffe2._core import threads
from caffe2.proto import caffe2_pb2
from caffe2.python import workspace

BATCHES = 1, 2, 4, 8, 16, 32
SIZES = 64, 112, 160, 224, 320, 448
CHANNELS = 16, 32, 64, 128, 256, 512, 1024
ROUNDS = 7


def measure(run, counts, least=0.1):
    """Median milliseconds for each number of threads; they take turns, and a sample takes `least` seconds."""
    run()
    samples = {n: [] for n in counts}
    for _ in range(ROUNDS):
        for n in counts:
            threads.set_num_threads(n)
            run()
            runs, start = 0, time.perf_counter()
            while time.perf_counter() < start + least:
                run()
                runs += 1
            samples[n].append(1e3 * (time.perf_counter() - start) / runs)
    return [statistics.median(samples[n]) for n in counts]


def predictor(**arguments):
    """A function that runs ResNet-50."""
    net = zoo.resnet50(**arguments)
    p = workspace.C.Predictor(net.init_net(), net.net)
    return lambda: p.run([net.data])


def convolution(channels, kernel, side=28):
    """A function that runs one on blocked images, between two that are made and taken by small ones."""
    rng = np.random.default_rng(0)
    net = caffe2_pb2.NetDef(name=f"conv{channels}_{kernel}")
    shapes = (channels, 16, 1), (channels, channels, kernel), (16, channels, 1)
    workspace.FeedBlob("x0", rng.standard_normal((1, 16, side, side), dtype=np.float32))
    for i, (filters, depth, k) in enumerate(shapes):
        workspace.FeedBlob(f"w{i}", rng.standard_normal((filters, depth, k, k), dtype=np.float32))
        workspace.FeedBlob(f"b{i}", np.zeros(filters, np.float32))
        op = net.op.add(type="Conv", input=[f"x{i}", f"w{i}", f"b{i}"], output=[f"x{i + 1}"])
        op.arg.add(name="kernel", i=k)
        op.arg.add(name="pad", i=k // 2)
    workspace.CreateNet(net, True)
    return net.name


def main():
    counts = sorted({1, len(os.sched_getaffinity(0))})
    titles = " ".join(f"{f'ms, {n}':>9}" for n in counts)

    def line(what, times, unit, pieces):
        columns = " ".join(f"{t:9.3f}" for t in times)
        print(f"{what:>10} {columns} {times[0] / times[-1]:7.2f} {times[-1] / pieces:12.4f}", unit)

    print(f"ResNet-50 by batch, 224 x 224\n{'':10} {titles}  faster")
    for batch in BATCHES:
        line(batch, measure(predictor(batch=batch), counts), "ms an image", batch)
    print(f"\nResNet-50 by image size, batch 1\n{'':10} {titles}  faster")
    for size in SIZES:
        line(size, measure(predictor(batch=1, size=size), counts), "ms a thousand pixels", size * size / 1000)
    for kernel in 1, 3:
        print(f"\nconvolution {kernel} x {kernel} of 28 x 28 pixels by channels\n{'':10} {titles}  faster")
        for channels in CHANNELS:
            name, times = convolution(channels, kernel), []
            for n in counts:
                threads.set_num_threads(n)
                times.append(statistics.median(workspace.BenchmarkNet(name, 5, 20, True)[2] for _ in range(ROUNDS)))
            line(channels, times, "ms a GFLOP", 2e-9 * (28 * channels * kernel) ** 2)


if __name__ == "__main__":
    main()
