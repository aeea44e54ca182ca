#!/usr/bin/env python3
"""Time well-known nets beside ONNX Runtime and PyTorch, in one run, with the same number of threads.

As in peers.py, each side works in a process of its own, which sleeps while another one is timed, and samples
alternate. The table shows medians with half the distance between the quartiles, and the median of the ratios of
neighbouring samples; a bar is what that may not exceed (<=) or must reach (>=).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import peers

# name: (net, batch, {peer: bar}); time in ms, of inference unless the name says otherwise
ROWS = {
    "walk-through": ("introduction", 16, {"torch": "<= 0.05"}),     # with gradients, in us
    "resnet50": ("resnet50", 1, {"onnxruntime": "<= 0.90", "torch-optimized": "<= 0.65"}),
    "resnet50-16": ("resnet50", 16, {"onnxruntime": "<= 0.90", "torch-optimized": "<= 0.65"}),
    "squeezenet": ("squeezenet", 1, {"onnxruntime": "<= 0.95"}),
    "mobilenet_v2": ("mobilenet_v2", 1, {"onnxruntime": "<= 0.95"}),
    "vgg16": ("vgg16", 1, {"onnxruntime": "<= 0.95"}),
    "inception_v1": ("inception_v1", 1, {"onnxruntime": "<= 0.95"}),
    "train-resnet50": ("resnet50", 8, {"torch": "<= 0.75"}),
    "train-mlp": ("mlp", 128, {"torch": "<= 0.80"}),
    "train-lenet": ("lenet", 64, {"torch": "<= 0.50"}),
    "memory-resnet50-16": ("resnet50", 16, {"onnxruntime": "<= 0.80"}),
    "threads-resnet50": ("resnet50", 1, {"one-thread": ">= 1.80"}),
    "threads-squeezenet": ("squeezenet", 1, {"one-thread": ">= 1.80"}),
    "threads-mobilenet_v2": ("mobilenet_v2", 1, {"one-thread": ">= 1.80"}),
    "threads-vgg16": ("vgg16", 1, {"one-thread": ">= 1.80"}),
    "threads-inception_v1": ("inception_v1", 1, {"one-thread": ">= 1.80"}),
}
STEPS = {"mlp": 20, "lenet": 10, "squeezenet": 20, "mobilenet_v2": 20, "inception_v1": 5}      # runs that make a sample


# ---------------------------------------------------------------- the sides; each function returns one that runs once


def ours(net, threads, files):
    from caffe2.python import workspace

    if net.train:
        net.feed()
        workspace.CreateNet(net.model.net)
        name = net.model.net.Name()
        return lambda: workspace.RunNet(name)
    predictor = workspace.C.Predictor(net.init_net(), net.net)
    return lambda: predictor.run([net.data])


def torch(net, threads, files):
    import torch
    import zoo

    torch.set_num_threads(threads)
    module = zoo.to_torch(net)
    data, label = torch.tensor(net.data), torch.tensor(net.label).long()
    sgd = torch.optim.SGD(module.parameters(), lr=zoo.LEARNING_RATE)

    def step():
        sgd.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(module(data), label).backward()
        sgd.step()

    return step


def torch_optimized(net, threads, files):
    import torch
    import zoo

    torch.set_num_threads(threads)
    data = torch.tensor(net.data)
    with torch.no_grad():
        module = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(zoo.to_torch(net).eval(), data)))

    def run():
        with torch.no_grad():
            module(data)

    return run


def session_options(threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def onnxruntime(net, threads, files):
    import onnxruntime
    import zoo

    session = onnxruntime.InferenceSession(zoo.to_onnx(net).SerializeToString(), session_options(threads))
    return lambda: session.run(None, {"data": net.data})


SIDES = {"ours": ours, "one-thread": ours, "torch": torch, "torch-optimized": torch_optimized,
         "onnxruntime": onnxruntime}


def peak():
    """Most megabytes that this process has ever held."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024


def memory(side, threads, files):
    """Megabytes that it takes, beyond the import, to load a net from its files and to run it twice."""
    import numpy as np

    data = np.load(os.path.join(files, "data.npy"))
    if side == "onnxruntime":
        import onnxruntime

        before = peak()
        session = onnxruntime.InferenceSession(os.path.join(files, "net.onnx"), session_options(threads))
        for _ in range(2):
            session.run(None, {"data": data})
        return peak() - before
    from caffe2.python import workspace

    def read(name):
        with open(os.path.join(files, name), "rb") as f:
            return f.read()

    before = peak()
    predictor = workspace.Predictor(read("init_net.pb"), read("predict_net.pb"))
    for _ in range(2):
        predictor.run([data])
    return peak() - before


def write_files(row, folder):
    """The net of a row as both sides load it; in a process of its own."""
    import numpy as np
    import zoo

    net = zoo.NETS[ROWS[row][0]](ROWS[row][1])
    np.save(os.path.join(folder, "data.npy"), net.data)
    for name, message in (("init_net.pb", net.init_net()), ("predict_net.pb", net.net),
                          ("net.onnx", zoo.to_onnx(net))):
        with open(os.path.join(folder, name), "wb") as f:
            f.write(message.SerializeToString())


# Seconds of untimed runs before a sample: threads that slept need some time to find a processor each.
WARM_UP = 0.2


def work(side, threads, files):
    """Take samples for the other process: a row's name comes in, a sample goes out."""
    current = run = None
    for line in sys.stdin:
        row = line.strip()
        name, batch, _ = ROWS[row]
        if row == "walk-through":
            if row != current:
                current, run = row, peers.SIDES["ours" if side == "ours" else "peer"](threads).walk_through()
                run()
            print(json.dumps(run()), flush=True)
            continue
        if row.startswith("memory"):
            print(json.dumps(memory(side, threads, files)), flush=True)
            continue
        if row != current:
            import zoo

            current, run = row, None
            options = {"train": True} if row.startswith("train") else {}
            run = SIDES[side](zoo.NETS[name](batch, **options), threads, files)
            for _ in range(3):
                run()
        steps = STEPS.get(name, 1)
        start = time.perf_counter()
        while time.perf_counter() < start + WARM_UP:
            run()
        start = time.perf_counter()
        for _ in range(steps):
            run()
        print(json.dumps(1e3 * (time.perf_counter() - start) / steps), flush=True)


# ---------------------------------------------------------------- the table


class Worker(peers.Worker):
    """One side, in a process of its own."""

    def __init__(self, side, threads, files):
        threads = 1 if side == "one-thread" else threads
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", side, "--threads", str(threads), "--files", files]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@dataclass
class Result:
    """Samples of us and of one peer for a row."""

    row: str
    peer: str
    bar: str
    ours: list
    theirs: list

    @property
    def ratio(self):
        """Ours by theirs; of threads, how many times faster."""
        invert = self.row.startswith("threads")
        return statistics.median(b / a if invert else a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def passes(self):
        relation, limit = self.bar.split()
        return self.ratio <= float(limit) if relation == "<=" else self.ratio >= float(limit)

    def __str__(self):
        unit = "us" if self.row == "walk-through" else "MB" if self.row.startswith("memory") else "ms"
        numbers = [f"{statistics.median(s):.4g} +- {peers.spread(s):.2g} {unit}" for s in (self.ours, self.theirs)]
        return (f"{self.row:21} {numbers[0]:>18} {numbers[1]:>18} {self.peer:16} {self.ratio:6.3f}  {self.bar:8} "
                f"{'yes' if self.passes else 'NO'}")


def measure(row, repeats, threads):
    """A Result for each peer of a row; all sides take turns."""
    bars = ROWS[row][2]
    sides = ["ours", *bars]
    samples = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as files:
        fresh = row.startswith("memory")
        if fresh:
            subprocess.run([sys.executable, __file__, "--write", row, "--files", files], check=True)
        workers = {} if fresh else {side: Worker(side, threads, files) for side in sides}
        try:
            for _ in range(min(repeats, 3) if fresh else repeats):
                for side in sides:
                    worker = Worker(side, threads, files) if fresh else workers[side]
                    samples[side].append(worker.sample(row))
                    if fresh:
                        worker.close()
        finally:
            for worker in workers.values():
                worker.close()
    return [Result(row, peer, bar, samples["ours"], samples[peer]) for peer, bar in bars.items()]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"which rows, by default all: {', '.join(ROWS)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="for all sides (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="samples of each side (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    for hidden in ("--worker", "--write", "--files"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if args.threads < 1 or args.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return args


def main():
    args = parse()
    if args.worker:
        work(args.worker, args.threads, args.files)
        return
    if args.write:
        write_files(args.write, args.files)
        return
    print(f"{args.threads} threads, {args.repeats} samples of each side, load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'work':21} {'ours':>18} {'theirs':>18} {'peer':16} {'ratio':>6}  {'bar':8} met")
    results = []
    for row in args.rows or ROWS:
        for result in measure(row, args.repeats, args.threads):
            results.append(result)
            print(result, flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump([vars(r) | {"ratio": r.ratio} for r in results], f, indent=1)


if __name__ == "__main__":
    main()
