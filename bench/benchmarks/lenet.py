"""LeNet on 28 x 28 images: a step of training, and prediction."""

from .common import THREADS, Fresh
from .models import lenet


class Training(Fresh):
    params = [[16, 64], THREADS]
    param_names = ["batch", "threads"]

    def build(self, batch):
        return lenet(batch)


class Prediction(Fresh):
    params = [[1, 64], THREADS]
    param_names = ["batch", "threads"]

    def build(self, batch):
        return lenet(batch, train=False)
