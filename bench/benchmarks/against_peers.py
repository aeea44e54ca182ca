"""The table of peers_zoo.py, measured in one run where the peers are installed, which asv does not do:

`asv run -E existing --bench Peers`
"""

import importlib.util
import os
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))     # asv puts the suite's own folder there only
import peers
import peers_zoo

SAMPLES = 15


def is_there(side):
    module = {"one-thread": "caffe2", "torch-optimized": "torch"}.get(side, side)
    return importlib.util.find_spec(module) is not None


class Peers:
    """Medians and half the distance between the quartiles: in us for the walk-through, MB for memory, else ms."""

    params = [f"{row} / {peer}" for row, (*_, bars) in peers_zoo.ROWS.items() for peer in bars]
    param_names = ["work_peer"]
    unit = "ms, us or MB"
    timeout = 60

    def setup_cache(self):
        if not all(is_there(side) for *_, bars in peers_zoo.ROWS.values() for side in bars):
            return {}
        threads = len(os.sched_getaffinity(0))
        results = [r for row in peers_zoo.ROWS for r in peers_zoo.measure(row, SAMPLES, threads)]
        return {f"{r.row} / {r.peer}": (r.ours, r.theirs, r.ratio) for r in results}

    setup_cache.timeout = 3600

    def setup(self, results, name):
        if name not in results:
            raise NotImplementedError("the peers are not installed")
        self.ours, self.theirs, self.ratio = results[name]

    def track_ours(self, results, name):
        return statistics.median(self.ours)

    def track_ours_spread(self, results, name):
        return peers.spread(self.ours)

    def track_peer(self, results, name):
        return statistics.median(self.theirs)

    def track_peer_spread(self, results, name):
        return peers.spread(self.theirs)

    def track_ratio(self, results, name):
        return self.ratio

    track_ratio.unit = "ours by theirs; of threads, how many times faster"
