"""Hold an operator and its gradients against a float64 reference written in numpy."""

import numpy as np

from opcheck import gradients, run

STEP = 1e-6


def slopes(reference, inputs, i, weights):
    """Central differences of sum(weights * outputs), one for each element of input i."""
    result = np.zeros(inputs[i].shape)
    for k in np.ndindex(result.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = list(inputs)
            moved[i] = np.array(inputs[i])
            moved[i][k] += step
            ends.append(sum(np.sum(w * y) for w, y in zip(weights, reference(*moved)) if w is not None))
        result[k] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def check(type, reference, inputs, outputs=1, flows=(0,), wanted=(0,), rtol=1e-5, atol=1e-5, **more):
    """Run an operator; its outputs and gradients must be those of the reference.

    Parameters
    ----------
    reference : callable
        float64 arrays (integers as they are) in, tuple of the outputs out.
    flows : tuple of int
        Outputs that gradients come from.
    wanted : tuple of int
        Inputs that have gradients; the others must have none.
    """
    got = run(type, *inputs, outputs=outputs, **more)
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs]
    for y, expected in zip(got, reference(*wide), strict=True):
        assert y.shape == np.shape(expected)
        np.testing.assert_allclose(y, expected, rtol=rtol, atol=atol)
    rng = np.random.default_rng(len(inputs) + sum(x.size for x in inputs))
    weights = [rng.standard_normal(y.shape).astype(np.float32) if o in flows else None for o, y in enumerate(got)]
    for i, dx in enumerate(gradients(type, inputs, weights, **more)):
        if i not in wanted:
            assert dx is None
            continue
        assert dx.shape == inputs[i].shape
        np.testing.assert_allclose(dx, slopes(reference, wide, i, weights), rtol=20 * rtol, atol=20 * atol)
    return got
