"""Activations and their gradients."""
from caffe2.ops.cuda.pointwise import FLOATS, Pointwise, pointwise, register_cuda


def activations(names, *arguments):
    """Register activations and their gradients."""
    pointwise(__name__, " ".join(f"{n} {n}Gradient" for n in names.split()), *arguments, dtypes=FLOATS)


activations("Relu Sigmoid Tanh Softplus Softsign Swish")
activations("LeakyRelu", ("alpha", 0.01))
activations("ThresholdedRelu", ("alpha", 1.0))
activations("ReluN", ("n", 6.0))
activations("Elu", ("alpha", 1.0))
activations("Selu", ("alpha", 1.6732632423543772848170429916717), ("scale", 1.0507009873554804934193349852946))
activations("HardSigmoid", ("alpha", 0.2), ("beta", 0.5))


@register_cuda("Gelu")
@register_cuda("GeluGradient")
class Gelu(Pointwise):
    def setup(self):
        self.parameters = [float(self.args.bool("fast_gelu")), 0.0]
