"""(operator type, device, engine) -> class, with the schema and the gradient of the type beside it."""
import difflib
import threading

from caffe2._core import gradient as _gradient
from caffe2._core.schema import OpSchema

CPU, CUDA = 0, 1
_DEVICE_NAMES = {CPU: "CPU", CUDA: "CUDA"}
_classes = {}                   # (type, device, engine) -> class
_loaders = {}                   # device -> function that registers its operators, called once, when first needed
_loading = threading.RLock()
_device_preference = {}         # device -> engines, in order
_op_preference = {}             # type -> {device: engines}


def register(type, cls, inputs, outputs, *, gradient=None, engine="", device=CPU, **schema):
    """Register an operator.

    Parameters
    ----------
    type : str
        Its name in an OperatorDef.
    cls : type
        Subclass of `Operator`; None where `register_class` gives it later.
    inputs, outputs : int or (int, int or None)
        How many it takes and gives; None for no limit.
    gradient : callable, optional
        Gradient maker, see `caffe2._core.gradient.Gradient`; `gradient.none` where nothing is to flow back.
    engine : str
        The engine that this class is for.
    device : int
        Device type that it runs on.
    **schema
        The rest of `OpSchema`: doc, args, required, ins, outs, inplace, enforce_inplace, infer, devices, cost.
    """
    if (type, device, engine) in _classes:
        raise ValueError(f"operator {type} is already registered for {_DEVICE_NAMES.get(device, device)} {engine}")
    _classes[type, device, engine] = cls
    if type not in OpSchema._all:
        OpSchema._all[type] = OpSchema(type, inputs, outputs, **schema)
    if gradient is not None:
        _gradient.set_maker(type, gradient)


def register_class(type, cls, *, engine="", device=CPU):
    """Register one more class (another device or engine) for an operator that has its schema already."""
    _classes[type, device, engine] = cls


def load_later(device, load):
    """Have a function called when an operator is first looked for on a device: it registers those of that device."""
    _loaders[device] = load


def find(type, device=CPU, engine=""):
    """The class for an operator: its own engine (or comma-separated engines), the preferred ones, then the default.

    Raises
    ------
    RuntimeError
        If nothing is registered; the message offers names that are close.
    """
    if device in _loaders:
        with _loading:
            if device in _loaders:
                _loaders[device]()
                del _loaders[device]
    engines = engine.split(",") if engine else []
    engines += _op_preference.get(type, {}).get(device, ())
    engines += _device_preference.get(device, ())
    for e in (*engines, ""):
        cls = _classes.get((type, device, e))
        if cls is not None:
            return cls
    if type in OpSchema._all:
        where = _DEVICE_NAMES.get(device, f"device type {device}")
        raise RuntimeError(f"operator {type} has no implementation for {where}; give it another device_option, and "
                           "copy its tensors (core.InjectCrossDeviceCopies)")
    close = nearby(type)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise RuntimeError(f"no operator is named {type!r}{hint}")


def nearby(type):
    """Names of operators that are close to `type`, best first."""
    lower = {t.lower(): t for t in registered()}
    return [lower[m] for m in difflib.get_close_matches(type.lower(), lower, 3, 0.7)]


def registered():
    """Sorted names of all operators that have an implementation."""
    return sorted({t for t, _, _ in _classes})


def registry_key(type, engine=""):
    """Name under which an operator of some engine is known."""
    return f"{type}_ENGINE_{engine}" if engine and engine != "DEFAULT" else type


def set_op_preference(preference):
    """{type: {device: [engine, ...]}}."""
    _op_preference.clear()
    _op_preference.update(preference)


def set_device_preference(preference):
    """{device: [engine, ...]}."""
    _device_preference.clear()
    _device_preference.update(preference)


def preferences():
    return _op_preference, _device_preference
