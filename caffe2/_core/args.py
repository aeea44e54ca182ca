"""Arguments of an operator or a net, read once when it is bound."""

_FIELDS = {
    "f": "a float", "i": "an int", "s": "a string", "n": "a net",
    "floats": "floats", "ints": "ints", "strings": "strings", "nets": "nets", "tensors": "tensors",
}


def kind(argument):
    """Which field of an Argument is set: ``"i"``, ``"floats"``, ...; None for an empty list."""
    for field in ("f", "i", "s", "n"):
        if argument.HasField(field):
            return field
    for field in ("floats", "ints", "strings", "nets", "tensors"):
        if len(getattr(argument, field)):
            return field
    return None


class Args:
    """Typed look-up of the ``arg`` field of an OperatorDef or NetDef.

    Each getter takes a name and a default. An int serves where a float is asked for, and a whole float for an int;
    anything else of the wrong kind raises TypeError.
    """

    def __init__(self, definition):
        self.definition = definition
        self._args = {}
        for a in definition.arg:
            if a.name in self._args and a != self._args[a.name]:
                raise ValueError(f"argument {a.name} is given twice, with different values")
            self._args[a.name] = a

    def __contains__(self, name):
        return name in self._args

    def __iter__(self):
        return iter(self._args)

    def _wrong(self, name, wanted):
        got = kind(self._args[name])
        return TypeError(f"argument {name} must be {wanted}, but is {_FIELDS.get(got, 'empty')}")

    def int(self, name, default=0):
        a = self._args.get(name)
        if a is None:
            return default
        if a.HasField("i"):
            return a.i
        if a.HasField("f") and a.f == a.f and a.f in (int(a.f) if abs(a.f) < 2**62 else None,):
            return int(a.f)
        raise self._wrong(name, "an int")

    def bool(self, name, default=False):
        return bool(self.int(name, default))

    def float(self, name, default=0.0):
        a = self._args.get(name)
        if a is None:
            return default
        if a.HasField("f"):
            return a.f
        if a.HasField("i"):
            return float(a.i)
        raise self._wrong(name, "a float")

    def bytes(self, name, default=b""):
        a = self._args.get(name)
        if a is None:
            return default
        if a.HasField("s"):
            return a.s
        raise self._wrong(name, "a string")

    def str(self, name, default=""):
        value = self.bytes(name, None)
        return default if value is None else value.decode()

    def net(self, name, default=None):
        a = self._args.get(name)
        if a is None:
            return default
        if a.HasField("n"):
            return a.n
        raise self._wrong(name, "a net")

    def _list(self, name, default, field, wanted, others=()):
        a = self._args.get(name)
        if a is None:
            return list(default)
        got = kind(a)
        if got is None or got == field or got in others:
            return list(getattr(a, field if got is None else got))
        raise self._wrong(name, wanted)

    def ints(self, name, default=()):
        return self._list(name, default, "ints", "ints")

    def floats(self, name, default=()):
        return [float(v) for v in self._list(name, default, "floats", "floats", ("ints",))]

    def strings(self, name, default=()):
        """List of bytes."""
        return self._list(name, default, "strings", "strings")

    def nets(self, name, default=()):
        return self._list(name, default, "nets", "nets")
