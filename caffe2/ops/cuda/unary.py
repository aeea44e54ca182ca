"""Functions of one tensor, place by place."""
from caffe2.ops.cuda.pointwise import DOUBLE, FLOATS, NUMBERS, Pointwise, pointwise, register_cuda

pointwise(__name__, "Negative Sign Sqr Abs", dtypes=NUMBERS)
pointwise(__name__, "Sqrt", dtypes=(*FLOATS, DOUBLE))
pointwise(__name__, "Exp Log Log1p Sin Cos Tan Asin Acos Atan Sinh Cosh Erf Rsqrt Reciprocal Cube Cbrt Ceil Floor")
pointwise(__name__, " ".join(f"{n}Gradient" for n in (
    "Abs Log1p Sin Cos Tan Asin Acos Atan Sinh Cosh Erf Cube Reciprocal Rsqrt Cbrt").split()))
pointwise(__name__, "Clip ClipGradient", ("min", -3.4028234663852886e38), ("max", 3.4028234663852886e38))


@register_cuda("Scale")
class Scale(Pointwise):
    arguments = (("scale", 1.0),)


@register_cuda("Logit")
@register_cuda("LogitGradient")
class Logit(Pointwise):
    arguments = (("eps", 1e-6),)

    def setup(self):
        super().setup()
        if not 0 < self.parameters[0] < 0.5:
            raise ValueError("eps must lie between 0 and 0.5")
