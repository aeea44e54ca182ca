"""Optimizers' steps on dense parameters."""
from caffe2._core.cuda import BiasCorrection
from caffe2.ops.cuda.pointwise import FLOAT, FLOAT16, SUFFIX, register_cuda
from caffe2.ops.cuda.reduction import Reducing


class Step(Reducing):
    """Base. `names` of the inputs and `outs` of the outputs say which continues which.

    The number of the iteration, where a rule needs it, is on the CPU; a rule that takes it by `iteration` is computed
    anew at each step, one that gives its kernel a BiasCorrection is not.
    """

    names, outs, dtype = "", "", FLOAT
    single = ("lr", "alpha", "seq_b", "grad_sq_sum", "effective_lr")

    def prepare(self):
        super().prepare()
        names = self.names.split()
        if "iter" in names:
            self.host_inputs = (names.index("iter"),)

    def read(self):
        """dict: inputs by name."""
        names = self.names.split()[:len(self.inputs)]
        given = {n: self.source(i, (FLOAT if n in self.single else self.dtype,)) for i, n in enumerate(names)
                 if n != "iter"}
        n = given["grad"].size
        for name, t in given.items():
            wanted = 1 if name in self.single else 2 * n if name == "n_z" else n
            if t.size != wanted:
                raise ValueError(f"{name} must have {wanted} elements, but has {t.size}")
        return given

    def write(self, given):
        """list: the outputs, shaped like the inputs that they continue; None for those not asked for."""
        outs = self.outs.split()
        made = []
        for o, name in enumerate(outs[:len(self.outputs)]):
            like = given.get(name, given["grad"])
            made.append(self.target(o, (1,), FLOAT) if name in self.single and name not in given else
                        self.like(o, like))
        return made + [None] * (len(outs) - len(made))

    def iteration(self):
        """Number of this step, from 1."""
        t = self.host(self.host_inputs[0])
        if t.size != 1 or t.dtype != "int64":
            raise ValueError("iter must be one int64")
        return int(t.reshape(())[()]) + 1

    def scratch_sum(self, x, room):
        """Sum of the squares of x, in a room."""
        to = self.room(room, 1)
        self.sum_all(x, to, kernel="SumSqr", scratch=room + 1)
        return to


def rule(name, names, outs, dtype=FLOAT):
    def decorate(cls):
        register_cuda(name, type(name, (cls,), {
            "names": names, "outs": outs, "dtype": dtype, "__module__": __name__}))
        return cls
    return decorate


@rule("MomentumSGD", "grad moment lr", "grad moment")
@rule("MomentumSGDUpdate", "grad moment lr param", "grad moment param")
@rule("FP32MomentumSGDUpdate", "grad moment lr param", "grad moment param")
@rule("FP16MomentumSGDUpdate", "grad moment lr param", "grad moment param", FLOAT16)
class Momentum(Step):
    def execute(self):
        x, args = self.read(), self.args
        step, m, *w = self.write(x)
        decay = args.float("weight_decay", 0) if self.type.startswith("FP") else 0.0
        self.launch("Momentum" + SUFFIX[self.dtype], step.size, x["grad"], x["moment"], x["lr"], x.get("param"), step,
                    m, w[0] if w else None, step.size, args.float("momentum", 0.0), float(args.bool("nesterov")), decay)


@rule("Adagrad", "param squares grad lr", "param squares effective_lr update")
class Adagrad(Step):
    single = ("lr",)

    def execute(self):
        x, args = self.read(), self.args
        y = self.write(x)
        self.launch("Adagrad", y[0].size, x["param"], x["squares"], x["grad"], x["lr"], *y, y[0].size,
                    args.float("epsilon", 1e-5), args.float("decay", 1.0), args.float("weight_decay", 0.0))


@rule("DecayAdagrad", "param moment_1 squares grad lr iter", "param moment_1 squares")
class DecayAdagrad(Step):
    def execute(self):
        x, args = self.read(), self.args
        y = self.write(x)
        b = args.float("beta1", 0.9)
        c = BiasCorrection(5, b) if args.bool("bias_correction_first", True) else 1.0
        self.launch("DecayAdagrad", y[0].size, *x.values(), *y, y[0].size, b, args.float("epsilon", 1e-5),
                    args.float("weight_decay", 0.0), c)


@rule("Adadelta", "param mean_squares moment_delta grad lr", "param mean_squares moment_delta")
class Adadelta(Step):
    def execute(self):
        x, args = self.read(), self.args
        y = self.write(x)
        self.launch("Adadelta", y[0].size, *x.values(), *y, y[0].size, args.float("epsilon", 1e-5),
                    args.float("decay", 0.95))


@rule("Adam", "param moment_1 moment_2 grad lr iter", "param moment_1 moment_2 grad")
class Adam(Step):
    def execute(self):
        x, args = self.read(), self.args
        y = self.write(x)
        b1, b2 = args.float("beta1", 0.9), args.float("beta2", 0.999)
        self.launch("Adam", y[0].size, *x.values(), *y, y[0].size, b1, b2, args.float("epsilon", 1e-5),
                    BiasCorrection(5, b1, b2))


@rule("RmsProp", "grad mean_squares moment lr", "grad mean_squares moment")
class RmsProp(Step):
    def execute(self):
        x, args = self.read(), self.args
        y = self.write(x)
        self.launch("RmsProp", y[0].size, *x.values(), *y, y[0].size, args.float("decay", 0.9),
                    args.float("momentum", 0.0), args.float("epsilon", 1e-5))


@rule("Ftrl", "param n_z grad alpha", "param n_z")
@rule("GFtrl", "param n_z grad alpha", "param n_z")
class Ftrl(Step):
    def execute(self):
        x, args = self.read(), self.args
        if "alpha" in x and "alpha" in args:
            raise ValueError("alpha may be an input or an argument, not both")
        w, nz = self.write(x)
        rows = w.shape[0] if w.ndim else 1
        sizes = (rows, w.size // rows if rows else 0) if self.type == "GFtrl" else (w.size,)
        self.launch(self.type, sizes[-1], x["param"], x["n_z"], x["grad"], x.get("alpha"), w, nz, *sizes,
                    args.float("alpha", 0.005), args.float("beta", 1.0), args.float("lambda1", 0.001),
                    args.float("lambda2", 0.001))


@rule("Wngrad", "param seq_b grad lr", "param seq_b effective_lr update")
class Wngrad(Step):
    def execute(self):
        x = self.read()
        total = self.scratch_sum(x["grad"], 0)
        w, b, rate, steps = self.write(x)
        rate = self.room(8, 1) if rate is None else rate
        self.launch_blocks("WngradRate", 1, x["seq_b"], x["lr"], total, b, rate, self.args.float("epsilon", 1e-5),
                           threads=32)
        self.launch("Step", w.size, x["param"], x["grad"], rate, w, steps, w.size)


@rule("Storm", "param moment grad_sq_sum grad lr", "param moment grad_sq_sum")
class Storm(Step):
    def execute(self):
        x = self.read()
        total, rate = self.scratch_sum(x["grad"], 0), self.room(8, 1)
        w, m, sums = self.write(x)
        self.launch_blocks("StormRate", 1, x["grad_sq_sum"], x["lr"], total, sums, rate, self.args.float("beta", 0.1),
                           threads=32)
        self.launch("Storm", w.size, x["param"], x["moment"], x["grad"], rate, w, m, w.size,
                    self.args.float("momentum", 10.0))


@rule("Lars", "param grad wd trust lr_max", "lr")
class Lars(Step):
    def setup(self):
        self.offset = self.args.float("offset", 0.5)
        if self.offset < 0:
            raise ValueError(f"the argument offset must not be negative, but is {self.offset}")

    def execute(self):
        x = [self.source(i, (FLOAT,)) for i in range(5)]
        if x[1].size != x[0].size or any(v.size != 1 for v in x[2:]):
            raise ValueError("takes the parameter, a gradient as large, and three single values")
        sums = self.scratch_sum(x[0], 0), self.scratch_sum(x[1], 8)
        self.launch_blocks("Lars", 1, *sums, *x[2:], self.target(0, (1,), FLOAT), self.offset,
                           self.args.float("lr_min", 0.02), threads=32)


@rule("WeightScale", "grad iter", "grad")
class WeightScale(Step):
    def execute(self):
        x, t, args = self.read(), self.iteration(), self.args
        y, = self.write(x)
        step, last = args.int("stepsize", 2**63 - 1), args.int("upper_bound_iter", 2**63 - 1)
        scale = args.float("scale", 1.0) if t % step == 0 and t < last else 1.0
        self.launch("ScaleBy", y.size, x["grad"], y, y.size, scale)


@register_cuda("YellowFin")
class YellowFin(Step):
    host_inputs = (9,)

    def setup(self):
        self.width = self.args.int("curv_win_width", 20)
        if self.width < 1:
            raise ValueError(f"the argument curv_win_width must be positive, but is {self.width}")

    def execute(self):
        args = self.args
        w, m, lr, mu, window, ga, g2a, means, g = (self.source(i, (FLOAT,)) for i in range(9))
        if any(v.shape != w.shape for v in (m, ga, g2a, g)):
            raise ValueError("the parameter, its gradient and their means must have the same shape")
        if (lr.size, mu.size, window.size, means.size) != (1, 1, self.width, 5):
            raise ValueError("the rate, the momentum, the window or the memory is of the wrong size")
        t = self.iteration() - 1
        if t < 1:
            raise ValueError("YellowFin counts iterations from 1")
        beta = args.float("beta", 0.999)
        c = 1 / (1 - beta ** t) if args.bool("zero_debias", True) else 1.0
        for i in (2, 3, 4, 7):
            self.copy(i, i)
        y = [self.like(i, self.source(i)) for i in range(8)]
        self.launch("YellowFinStep", w.size, w, m, lr, mu, ga, g2a, g, y[0], y[1], y[5], y[6], w.size, beta,
                    float(args.bool("nesterov")))
        sums = self.scratch_sum(g, 0), self.scratch_sum(y[5], 8)
        self.launch_blocks("YellowFinTune", 1, *sums, y[4], y[7], y[2], y[3], self.width, t,
                           args.float("epsilon", 1e-6), beta, c, threads=32)
