"""Arrays into blobs and out of them."""

import numpy as np

from caffe2.python import workspace


class FeedFetch:
    params = [[(16, 100), (64, 3, 224, 224)], ["float32", "float16", "int64"]]
    param_names = ["shape", "dtype"]

    def setup(self, shape, dtype):
        workspace.ResetWorkspace()
        self.array = np.ones(shape, dtype)
        workspace.FeedBlob("x", self.array)

    def time_feed(self, shape, dtype):
        workspace.FeedBlob("x", self.array)

    def time_fetch(self, shape, dtype):
        workspace.FetchBlob("x")

    def time_view(self, shape, dtype):
        workspace.C.view_blob("x")

    def peakmem_fetch(self, shape, dtype):
        workspace.FetchBlob("x")


class Strings:
    def setup(self):
        workspace.ResetWorkspace()
        self.array = np.array([b"some text"] * 1000, dtype=object)
        workspace.FeedBlob("x", self.array)

    def time_feed(self):
        workspace.FeedBlob("x", self.array)

    def time_fetch(self):
        workspace.FetchBlob("x")
