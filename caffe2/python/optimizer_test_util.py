"""Test cases that every optimizer should pass.

A test class inherits from `OptimizerTestBase` (and `LRModificationTestBase`, if its optimizer takes
these arguments) and a `unittest.TestCase`, and provides `build_optimizer(model, **kwargs)` and
`check_optimizer(optimizer)`.
"""
from __future__ import annotations

import unittest

import numpy as np

from caffe2.python import brew, cnn, core, optimizer, workspace
from caffe2.python.model_helper import ModelHelper
from caffe2.python.modeling.initializers import Initializer, PseudoFP16Initializer

_ITERATIONS = 2000


class OptimizerTestBase:
    """The optimizer recovers the weights of a linear model."""

    _skip_gpu = False

    def _createDense(self, dtype=core.DataType.FLOAT):
        perfect_model = np.array([2, 6, 5, 0, 1]).astype(np.float32)
        self._rng = np.random.default_rng(123)
        half = dtype == core.DataType.FLOAT16
        data = self._rng.integers(2, size=(20, perfect_model.size)).astype(
            np.float16 if half else np.float32)
        label = np.dot(data, perfect_model)[:, np.newaxis]

        model = ModelHelper(name="test", arg_scope={"order": "NCHW"})
        initializer = PseudoFP16Initializer if half else Initializer
        out = brew.fc(
            model, "data", "fc", perfect_model.size, 1, ("ConstantFill", {}),
            ("ConstantFill", {}), axis=0, WeightInitializer=initializer,
            BiasInitializer=initializer)
        if half:
            out = model.HalfToFloat(out, out + "_fp32")
        loss = model.AveragedLoss(model.SquaredL2Distance([out, "label"]), "avg_loss")
        grad_map = model.AddGradientOperators([loss])
        self.assertIsInstance(grad_map["fc_w"], core.BlobReference)
        return model, perfect_model, data, label

    def _feed(self, data, label, row):
        workspace.FeedBlob("data", data[row])
        workspace.FeedBlob("label", label[row])

    def _create(self, model, data, label):
        self._feed(data, label, 0)
        workspace.RunNetOnce(model.param_init_net)
        workspace.CreateNet(model.net, True)

    def testDense(self):
        model, perfect_model, data, label = self._createDense()
        optimizer = self.build_optimizer(model)
        self._create(model, data, label)
        for _ in range(_ITERATIONS):
            self._feed(data, label, self._rng.integers(data.shape[0]))
            workspace.RunNet(model.net.Proto().name)
        np.testing.assert_allclose(
            perfect_model[np.newaxis, :], workspace.FetchBlob("fc_w"), atol=1e-2)
        self.check_optimizer(optimizer)

    @unittest.skipIf(not workspace.has_gpu_support, "No gpu support")
    def testGPUDense(self, dtype=core.DataType.FLOAT):
        with core.DeviceScope(core.DeviceOption(workspace.GpuDeviceType, 0)):
            model, _, data, label = self._createDense(dtype)
            fc = "fc"
            if dtype == core.DataType.FLOAT16:
                fc = model.HalfToFloat(fc, "fc_fp32_for_host")
            model.CopyGPUToCPU(fc, "fc_cpu")
            self._feed(data, label, 0)
        brew.fc(model, "fc_cpu", "fc2", dim_in=1, dim_out=10, axis=0)
        self.build_optimizer(model)
        if self._skip_gpu:
            return
        workspace.RunNetOnce(model.param_init_net)
        workspace.CreateNet(model.net, True)
        workspace.RunNet(model.net.Proto().name)

    def testSparse(self):
        # Each weight has two indices, so that a gradient may hold its row twice.
        duplication = 2
        perfect_model = np.array([2, 6, 5, 0, 1]).astype(np.float32)
        self._rng = np.random.default_rng(123)
        data = self._rng.integers(
            2, size=(20, perfect_model.size * duplication)).astype(np.float32)
        label = np.dot(data, np.repeat(perfect_model, duplication))

        model = cnn.CNNModelHelper("NCHW", name="test")
        w = model.param_init_net.ConstantFill([], "w", shape=[perfect_model.size], value=0.0)
        model.params.append(w)
        picked = model.net.Gather([w, "indices"], "gather")
        out = model.ReduceFrontSum(picked, "sum")
        loss = model.AveragedLoss(model.SquaredL2Distance([out, "label"]), "avg_loss")
        grad_map = model.AddGradientOperators([loss])
        self.assertIsInstance(grad_map["w"], core.GradientSlice)
        optimizer = self.build_optimizer(model)

        workspace.CreateBlob("indices")
        workspace.CreateBlob("label")
        for dtype in (np.int32, np.int64):
            workspace.RunNetOnce(model.param_init_net)
            workspace.CreateNet(model.net, True)
            for _ in range(_ITERATIONS):
                row = self._rng.integers(data.shape[0])
                indices = np.repeat(np.arange(perfect_model.size), duplication)[data[row] == 1]
                if not indices.size:
                    continue
                workspace.FeedBlob("indices", indices.astype(dtype))
                workspace.FeedBlob("label", np.array(label[row], dtype=np.float32))
                workspace.RunNet(model.net.Proto().name)
            np.testing.assert_allclose(perfect_model, workspace.FetchBlob("w"), atol=1e-2)
        self.check_optimizer(optimizer)


class LRModificationTestBase:
    """Gradient clipping by the global norm, and learning rates scaled from outside."""

    def _gradient_ratio_reference(self, model, params, max_gradient_norm):
        grads = [workspace.FetchBlob(model.param_to_grad[param]) for param in params]
        norm = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads))
        return max_gradient_norm / max(max_gradient_norm, norm)

    def test_global_norm_based_gradient_clipping(self):
        max_gradient_norm = 1.0
        model, _, data, label = self._createDense()
        opt = self.build_optimizer(model, max_gradient_norm=max_gradient_norm)
        params = [
            param for param in model.GetParams(top_scope=True)
            if isinstance(model.param_to_grad.get(param), core.BlobReference)
        ]
        self._create(model, data, label)
        self.assertIsNotNone(opt._lr_multiplier)
        self._feed(data, label, self._rng.integers(data.shape[0]))
        workspace.RunNet(model.net.Proto().name)

        reference = self._gradient_ratio_reference(model, params, max_gradient_norm)
        norm_ratio = workspace.FetchBlob("norm_clipped_grad_update/norm_ratio")
        np.testing.assert_almost_equal(norm_ratio, reference)
        self.assertLess(reference, 1.0, "the gradient was not scaled")

    def test_lr_injection(self):
        model, _, data, label = self._createDense()
        opt = self.build_optimizer(model, max_gradient_norm=1, allow_lr_injection=True)
        self._create(model, data, label)
        self.assertIsNotNone(opt._lr_multiplier)
        self.assertEqual(optimizer.get_lr_injection(), 1)
        optimizer.set_lr_injection(0)
        self.assertEqual(optimizer.get_lr_injection(), 0)
        workspace.RunNet(model.net.Proto().name)
        self.assertEqual(workspace.FetchBlob("lr_multiplier"), 0)
