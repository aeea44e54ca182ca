#!/usr/bin/env python3
"""Time caffe2 beside PyTorch on the same work in one run, with the same number of threads.

Each side works in a process of its own that sleeps while the other one is timed, since two OpenMP pools that spin
disturb each other. Samples alternate: ours, theirs, ours, theirs. The table shows medians with half the distance
between the quartiles, the median of the ratios of neighbouring samples, and the ratio of the best samples, which
differs from it where other work disturbs the machine. A bar is what the ratio, or our own median, may not exceed
(<=) or must reach (>=).
"""
import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

BATCH = 64

# name: (unit, work, bar, what the bar holds for)
ROWS = {
    "walk-through": ("us", "an iteration of the introduction's net with gradients, batch 16", "<= 0.05", "ratio"),
    "lenet": ("ms", "a training step of LeNet, batch 64, 28x28, SGD", "<= 0.5", "ratio"),
    "feed": ("us", "feed a float32 array (16, 100)", "<= 1.5", "ours"),
    "fetch": ("us", "fetch a float32 array (16, 100)", "<= 0.8", "ours"),
    "parallel": ("x", "throughput of two Python threads by that of one, the introduction's net", ">= 1.7", "ours"),
    "import": ("s", "import in a fresh process", "<= 0.3", "ours"),
    "size": ("MB", "installed, without dependencies", "<= 20", "ours"),
}
IMPORTS = {
    "ours": "from caffe2.python import workspace, core, brew, model_helper, cnn",
    "peer": "import torch",
}
PACKAGES = {"ours": "caffe2", "peer": "torch"}


def seconds(function, *args):
    """How long a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def warm_seconds(function, *args):
    """The same, right after another call: threads that slept need some time to find a processor each."""
    function(*args)
    return seconds(function, *args)


# ---------------------------------------------------------------- the two sides


class Ours:
    """Each method returns a function that takes one sample."""

    def __init__(self, threads):
        from benchmarks import models

        from caffe2.python import workspace

        self.models, self.workspace = models, workspace

    def walk_through(self):
        name = self.models.walk_through()[0].net.Name()
        return lambda: 1e6 * warm_seconds(self.workspace.RunNet, name, 1000) / 1000

    def lenet(self):
        name = self.models.lenet(BATCH)
        return lambda: 1e3 * warm_seconds(self.workspace.RunNet, name, 20) / 20

    def feed(self):
        array, feed = self.models.normal(16, 100), self.workspace.FeedBlob
        return lambda: each(lambda: feed("x", array))

    def fetch(self):
        self.workspace.FeedBlob("x", self.models.normal(16, 100))
        fetch = self.workspace.FetchBlob
        return lambda: each(lambda: fetch("x"))

    def parallel(self):
        create = self.workspace.C.Workspace
        nets = [self.models.walk_through(create())[1] for _ in range(2)]
        return speedup([net.run for net in nets], 20000)


class Peer:
    """The same work in PyTorch."""

    def __init__(self, threads):
        import torch
        from torch import nn

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.nn = torch, nn

    def walk_through_step(self):
        torch, nn = self.torch, self.nn
        net = nn.Sequential(nn.Linear(100, 10), nn.Sigmoid())
        parameters = list(net.parameters())
        x, label = torch.rand(16, 100), torch.randint(10, (16,))

        def steps(count):
            for _ in range(count):
                for p in parameters:
                    p.grad = None
                nn.functional.cross_entropy(net(x), label).backward()

        return steps

    def walk_through(self):
        steps = self.walk_through_step()
        return lambda: 1e6 * warm_seconds(steps, 1000) / 1000

    def lenet(self):
        torch, nn = self.torch, self.nn
        net = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        x, label = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

        def steps(count):
            for _ in range(count):
                sgd.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(net(x), label).backward()
                sgd.step()

        return lambda: 1e3 * warm_seconds(steps, 20) / 20

    def feed(self):
        array, tensor = self.torch.randn(16, 100).numpy(), self.torch.empty(16, 100)
        return lambda: each(lambda: tensor.copy_(self.torch.from_numpy(array)))

    def fetch(self):
        tensor = self.torch.randn(16, 100)
        return lambda: each(lambda: tensor.numpy().copy())

    def parallel(self):
        return speedup([self.walk_through_step() for _ in range(2)], 1000)


SIDES = {"ours": Ours, "peer": Peer}


def each(function, count=20000):
    """Microseconds of one call."""
    def loop():
        for _ in itertools.repeat(None, count):
            function()
    return 1e6 * warm_seconds(loop) / count


def speedup(functions, *args):
    """Returns a function that takes a sample: how much faster functions are in threads of their own than in turn."""
    pool = ThreadPoolExecutor(len(functions))

    def run(functions):
        for future in [pool.submit(f, *args) for f in functions]:
            future.result()

    return lambda: len(functions) * seconds(run, functions[:1]) / seconds(run, functions)


def work(side, threads):
    """Take samples for the other process: a row's name comes in, a sample or an error goes out."""
    side = SIDES[side](threads)
    samplers = {}
    for line in sys.stdin:
        row = line.strip()
        if row not in samplers:
            samplers[row] = getattr(side, row.replace("-", "_"))()
            samplers[row]()
        print(json.dumps(samplers[row]()), flush=True)


# ---------------------------------------------------------------- the table


class Worker:
    """One side, in a process of its own."""

    def __init__(self, side, threads):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", side, "--threads", str(threads)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sample(self, row):
        self.process.stdin.write(row + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{' '.join(self.process.args)} ended while it timed {row}")
        time.sleep(0.2)         # its threads stop spinning
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def import_time(side):
    """Seconds that the import takes in a fresh process, without the interpreter's start."""
    code = f"import time; t = time.perf_counter(); {IMPORTS[side]}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def installed_size(side):
    """Megabytes of a package's files, or None where it is run from its source tree."""
    try:
        distribution = importlib.metadata.distribution(PACKAGES[side])
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return None
    paths = [distribution.locate_file(f) for f in distribution.files or ()]
    return sum(p.stat().st_size for p in paths if p.is_file()) / 1e6


def measure(row, repeats, sides, workers):
    """Samples of the sides, taken in turn."""
    samples = {side: [] for side in sides}
    if row == "size":
        return {side: [size] for side in sides if (size := installed_size(side)) is not None}
    for _ in range(repeats):
        for side, list_ in samples.items():
            list_.append(import_time(side) if row == "import" else workers[side].sample(row))
    return samples


def spread(samples):
    """Half the distance between the quartiles."""
    if len(samples) < 2:
        return 0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / 2


def summary(row, samples):
    """What the table says of a row."""
    unit, description, bar, on = ROWS[row]
    result = {"work": description, "unit": unit, "bar": bar, "bar_on": on}
    for side, list_ in samples.items():
        result[side] = {"median": statistics.median(list_), "spread": spread(list_), "samples": list_}
    if len(samples) == 2:
        ours, peer = samples.values()
        result["ratio"] = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
        best = max if unit == "x" else min
        result["ratio_of_best"] = best(ours) / best(peer)
    value = result.get("ratio") if on == "ratio" else result.get("ours", {}).get("median")
    if value is not None:
        relation, limit = bar.split()
        result["passes"] = value <= float(limit) if relation == "<=" else value >= float(limit)
    return result


def print_row(row, result):
    def number(side):
        if side not in result:
            return "-"
        s = result[side]
        return f"{s['median']:.3g} +- {s['spread']:.2g} {result['unit']}"

    ratio, best = (f"{result[key]:.3f}" if key in result else "" for key in ("ratio", "ratio_of_best"))
    verdict = {True: "yes", False: "NO", None: ""}[result.get("passes")]
    bar = f"{result['bar_on']} {result['bar']}"
    print(f"{row:13} {number('ours'):>20} {number('peer'):>20} {ratio:>7} {best:>7}  {bar:14} {verdict}", flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"which rows, by default all: {', '.join(ROWS)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="for both sides (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="samples of each side (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all samples there ('-': standard output, no table)")
    parser.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if args.threads < 1 or args.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return args


def main():
    args = parse()
    if args.worker:
        work(args.worker, args.threads)
        return
    rows = args.rows or list(ROWS)
    sides = [side for side, package in PACKAGES.items() if importlib.util.find_spec(package)]
    workers = {}
    if set(rows) - {"import", "size"}:
        workers = {side: Worker(side, args.threads) for side in sides}
    table = args.json != "-"
    if table:
        load = os.getloadavg()[0]
        print(f"{args.threads} threads, {args.repeats} samples of each side, load of the machine {load:.1f}")
        for side in PACKAGES.keys() - sides:
            print(f"{PACKAGES[side]} is not installed")
        print(f"{'work':13} {'ours':>20} {'peer':>20} {'ratio':>7} {'of best':>7}  {'bar':14} met")
    results = {}
    try:
        for row in rows:
            results[row] = summary(row, measure(row, args.repeats, sides, workers))
            if table:
                print_row(row, results[row])
    finally:
        for worker in workers.values():
            worker.close()
    if table:
        print()
        for row in rows:
            print(f"{row:13} {ROWS[row][1]}")
    if args.json:
        text = json.dumps({"threads": args.threads, "rows": results}, indent=1)
        if table:
            with open(args.json, "w") as f:
                f.write(text + "\n")
        else:
            print(text)


if __name__ == "__main__":
    main()
