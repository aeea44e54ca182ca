"""Well-known nets: prediction, optimized for inference, and a step of training."""

import sys
from pathlib import Path

from caffe2._core.threads import set_num_threads

from caffe2.python import workspace

from .common import THREADS, Fresh

sys.path.append(str(Path(__file__).parents[1]))     # asv puts the suite's own folder there only
import zoo


class Inference:
    params = [list(zoo.NETS), [1, 16], THREADS]
    param_names = ["net", "batch", "threads"]
    timeout = 300

    def setup(self, name, batch, threads):
        set_num_threads(threads)
        net = zoo.NETS[name](batch)
        self.predictor, self.data = workspace.Predictor(net.init_net(), net.net), [net.data]
        self.predictor.run(self.data)

    def time_run(self, *params):
        self.predictor.run(self.data)

    def peakmem_run(self, *params):
        self.predictor.run(self.data)


class Training(Fresh):
    params = [[("resnet50", 8), ("mlp", 128), ("lenet", 64)], THREADS]
    param_names = ["net_batch", "threads"]
    timeout = 300

    def build(self, net_batch):
        name, batch = net_batch
        net = zoo.NETS[name](batch, train=True)
        net.feed()
        workspace.CreateNet(net.model.net)
        return net.model.net.Name()
