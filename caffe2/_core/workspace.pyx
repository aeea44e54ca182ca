"""Workspaces: blobs and nets by name. A child sees its parent's blobs, and may be given them under other names."""
import numpy as np

cimport cython
cimport numpy as cnp

from caffe2._core.blob cimport Blob
from caffe2._core.tensor cimport UNDEFINED, from_numpy, to_numpy

from caffe2._core.errors import BlobNotFound

cnp.import_array()


class _Current:
    """The current workspace, as an attribute of the class."""

    def __get__(self, obj, owner=None):
        return _current


cdef class Workspace:
    """Blobs and nets by name.

    Parameters
    ----------
    root_folder : str
        Where operators that read or write files start from.
    parent : Workspace, optional
        Its blobs are seen here too; what is created here stays here.
    forwarded : dict of str to str, optional
        Blobs of `parent` (values) under other names (keys); all others of the parent are then hidden.
    """

    current = _Current()

    def __init__(self, root_folder=".", Workspace parent=None, forwarded=None):
        self.root_folder = root_folder
        self._blobs = {}
        self._nets = {}
        self._forwarded = set()
        self.parent = parent if forwarded is None else None
        if forwarded is not None:
            for name, theirs in forwarded.items():
                blob = parent.get(theirs)
                if blob is None:
                    raise RuntimeError(f"cannot forward blob {theirs}: the parent workspace has none of that name")
                self._blobs[name] = blob
                self._forwarded.add(name)

    cpdef Blob get(self, str name):
        """The blob of that name here or in a parent, else None."""
        blob = self._blobs.get(name)
        if blob is None and self.parent is not None:
            return self.parent.get(name)
        return blob

    cpdef Blob create(self, str name):
        """The blob of that name, made here if there is none."""
        cdef Blob blob = self.get(name)
        if blob is None:
            blob = Blob.__new__(Blob)
            blob.name = name
            self._blobs[name] = blob
        return blob

    def create_local(self, str name):
        """The blob of that name in this very workspace, made if a parent alone has one."""
        if name not in self._blobs:
            self._blobs[name] = Blob(name)
        return self._blobs[name]

    def __getitem__(self, name):
        blob = self.get(str(name))
        if blob is None:
            raise KeyError(name)
        return blob

    def __contains__(self, name):
        return self.get(str(name)) is not None

    def __iter__(self):
        return iter(self.names())

    def __len__(self):
        return len(self.names())

    def names(self):
        """Sorted names of all blobs seen here."""
        names = set(self._blobs)
        if self.parent is not None:
            names.update(self.parent.names())
        return sorted(names)

    def local_names(self):
        """Sorted names of the blobs of this very workspace."""
        return sorted(set(self._blobs) - self._forwarded)

    def remove(self, str name):
        """Forget a blob of this workspace; False where there is none."""
        return self._blobs.pop(name, None) is not None

    @property
    def nets(self):
        """dict of str to Net: the nets created here."""
        return self._nets

    @property
    def blobs(self):
        """dict of str to Blob: all blobs seen here."""
        return {name: self.get(name) for name in self.names()}

    def has_blob(self, name):
        return name in self

    def create_blob(self, name):
        return self.create(str(name))

    def remove_blob(self, name):
        self.remove(str(name))

    def fetch_blob(self, name):
        """A blob's value; see `Blob.fetch`."""
        return self[name].fetch()

    def feed_blob(self, name, value, device_option=None):
        """Copy a value into a blob, which is created if need be; see `Blob.feed`."""
        self.create(str(name)).feed(value, device_option)
        return True

    def create_net(self, net, overwrite=False):
        """Bind a net (Net, NetDef) here and return it."""
        from caffe2._core.executor import create_net

        net = net.Proto() if hasattr(net, "Proto") else net
        if getattr(getattr(net, "DESCRIPTOR", None), "name", None) != "NetDef":
            raise TypeError(f"a net is a Net or a NetDef, not {type(net).__name__}")
        return create_net(net, self, overwrite)

    def run(self, what):
        """Run a Net, NetDef, OperatorDef, Plan or PlanDef once."""
        from caffe2._core.executor import bind_net
        from caffe2._core.operator import run_once
        from caffe2._core.plan import run_plan

        what = what.Proto() if hasattr(what, "Proto") else what
        kind = getattr(getattr(what, "DESCRIPTOR", None), "name", type(what).__name__)
        if kind == "NetDef":
            return bind_net(what, self).run()
        if kind == "OperatorDef":
            return run_once(what, self)
        if kind == "PlanDef":
            return run_plan(what, self)
        raise ValueError(f"a workspace runs nets, operators and plans, not {kind}")

    def __repr__(self):
        return f"Workspace({len(self)} blobs, {len(self._nets)} nets)"


# ---------------------------------------------------------------- the current one

cdef dict _workspaces = {"default": Workspace()}
cdef str _current_name = "default"
cdef Workspace _current = _workspaces["default"]


def current():
    """The current workspace."""
    return _current


@cython.binding(False)
def current_name():
    """The current workspace's name."""
    return _current_name


@cython.binding(False)
def workspaces():
    """Names of all workspaces."""
    return list(_workspaces)


def switch(name, create_if_missing=False):
    """Make another workspace the current one.

    Raises
    ------
    RuntimeError
        If there is none of that name and it is not to be created.
    """
    global _current, _current_name
    if isinstance(name, Workspace):
        _current = name
        return
    name = str(name)
    if name not in _workspaces:
        if not create_if_missing:
            raise RuntimeError(f"no workspace is named {name!r}; there are {', '.join(sorted(_workspaces))}")
        _workspaces[name] = Workspace()
    _current_name = name
    _current = _workspaces[name]


def create_child(parent, name):
    """Make, or replace, a named workspace that sees the blobs of another named one."""
    if str(parent) not in _workspaces:
        raise RuntimeError(f"no workspace is named {str(parent)!r}")
    above = _workspaces[str(parent)]
    _workspaces[str(name)] = Workspace(above.root_folder, above)


def reset(root_folder=None):
    """Replace the current workspace by an empty one."""
    global _current
    _current = _workspaces[_current_name] = Workspace("." if root_folder is None else str(root_folder))


cdef inline str as_name(object name):
    if type(name) is str:
        return name
    return name.decode() if isinstance(name, bytes) else str(name)


cdef Blob find(object name):
    cdef Blob blob
    name = as_name(name)
    blob = _current._blobs.get(name)
    if blob is None:
        blob = _current.get(name)
    if blob is None:
        raise BlobNotFound(f"no blob is named {name!r} in workspace {_current_name!r}")
    return blob


@cython.binding(False)
def fetch_blob(name):
    """Fetch a blob's value.

    Parameters
    ----------
    name : str or BlobReference
        The blob.

    Returns
    -------
    numpy.ndarray or object
        A copy of a tensor (bytes objects for strings), or the object that the blob holds.

    Raises
    ------
    BlobNotFound
        If no blob has that name; a KeyError and a RuntimeError.
    RuntimeError
        If the blob is empty.
    """
    cdef Blob blob = find(name)
    if blob.t.dtype != UNDEFINED:
        return to_numpy(&blob.t, False)
    return blob.fetch()


@cython.binding(False)
def view_blob(name):
    """A numpy array that shares the memory of a blob's tensor (strings are copied)."""
    return find(name).view()


@cython.binding(False)
def feed_blob(name, value, device_option=None):
    """Copy a value into a blob of the current workspace, which is created if need be.

    Parameters
    ----------
    name : str or BlobReference
        The blob.
    value : array_like, str or bytes
        What it is to hold; an array of text becomes a tensor of strings.
    device_option : bytes, optional
        Serialized DeviceOption of the device to hold it.

    Raises
    ------
    TypeError
        If no tensor can hold the array's dtype.
    """
    cdef Blob blob
    cdef bint new
    key = as_name(name)
    blob = _current.get(key)
    new = blob is None
    if new:
        blob = _current.create(key)
    try:
        if type(value) is np.ndarray and device_option is None:
            from_numpy(&blob.t, value)
        else:
            blob.feed(value, device_option)
    except BaseException:
        if new:
            _current.remove(key)
        raise
    return True
