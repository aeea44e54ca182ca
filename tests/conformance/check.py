#!/usr/bin/env python3
"""Hold the package against the last public Caffe2 release.

    check.py operators [OP ...]   run the recorded cases and compare every output
    check.py nets      [NAME ...] run the recorded nets and compare every blob
    check.py gradients [OP ...]   compare the gradient operators that the registry makes
    check.py schemas   [OP ...]   compare arity, in-place rules and argument names
    check.py protos               compare messages, field names, numbers, types and defaults
    check.py api       [MODULE ..] compare public names and call signatures

Everything here was read off, or recorded from, that release:
    cases/OP.npz     runs of one operator: its OperatorDef, inputs and outputs
    nets/NAME.npz    a run of one net: its NetDef, the blobs fed, every tensor it wrote
    reference/       operators.json: schemas and gradients; protos.json; python_api.json
Options: --cases DIR, --failing (names only), --json FILE (full result).
Each operator runs in a process of its own, so that a crash costs one operator.
"""
import argparse
import base64
import importlib
import inspect
import json
import os
import signal
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.path.join(HERE, "reference")


def reference(name):
    with open(os.path.join(REFERENCE, name)) as f:
        return json.load(f)


# ---------------------------------------------------------------- cases

def load(path):
    """The description in a recorded file, and a function that gives the arrays it speaks of."""
    z = np.load(path)

    def array(d):
        if d["kind"] == "num":
            return z[d["key"]]
        a = np.empty(len(d["data"]), dtype=object)
        a[:] = [base64.b64decode(x) for x in d["data"]]
        return a.reshape(d["shape"])

    return json.loads(z["meta"].tobytes()), array


def load_cases(path):
    """A case is a dict: op (serialized OperatorDef), inputs, outputs (arrays), deterministic."""
    meta, array = load(path)
    return [
        dict(
            op=base64.b64decode(m["op"]),
            deterministic=m["deterministic"],
            inputs=[array(d) for d in m["inputs"]],
            outputs=[array(d) for d in m["outputs"]],
        )
        for m in meta
    ]


def load_net(path):
    """A net case is a dict: net (serialized NetDef), inputs and outputs by name.

    An input is an array, an output a pair (array, deterministic).
    """
    m, array = load(path)
    return dict(
        net=base64.b64decode(m["net"]),
        inputs={n: array(d) for n, d in m["inputs"].items()},
        outputs={n: (array(d), d["deterministic"]) for n, d in m["outputs"].items()},
    )


def difference(got, want, deterministic=True):
    """None where the arrays agree, else a sentence saying how they differ."""
    got = np.asarray(got)
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.dtype == object:
        a = [x.encode() if isinstance(x, str) else bytes(x) for x in got.ravel()]
        return None if a == list(want.ravel()) else "strings differ"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if not deterministic or want.size == 0:
        return None
    if want.dtype.kind != "f":
        wrong = np.count_nonzero(got != want)
        return f"{wrong} of {want.size} values differ" if wrong else None
    finite = np.isfinite(want)
    if not (
        np.array_equal(finite, np.isfinite(got))
        and np.array_equal(got[~finite], want[~finite], equal_nan=True)
    ):
        return "non-finite values differ"
    g, w = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not w.size:
        return None
    rtol = 1e-2 if want.dtype == np.float16 else 1e-3
    bound = 0.02 * rtol * max(1.0, np.abs(w).max()) + rtol * np.abs(w)
    worst = (np.abs(g - w) - bound).max()
    return None if worst <= 0 else f"largest error {np.abs(g - w).max():.3g}"


def run_case(case):
    from caffe2.proto import caffe2_pb2
    from caffe2.python import workspace

    op = caffe2_pb2.OperatorDef()
    op.ParseFromString(case["op"])
    workspace.ResetWorkspace()
    for name, a in zip(op.input, case["inputs"]):
        workspace.FeedBlob(name, a)
    workspace.RunOperatorOnce(op)
    for name, want in zip(op.output, case["outputs"]):
        d = difference(workspace.FetchBlob(name), want, case["deterministic"])
        if d:
            return f"output {name}: {d}"
    return None


def brief(e):
    return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"[:200]


def run_operator_cases(path):
    bad, n = [], 0
    for case in load_cases(path):
        n += 1
        try:
            d = run_case(case)
        except Exception as e:
            d = brief(e)
        if d:
            bad.append(d)
    return dict(cases=n, failed=len(bad), why=bad[:3])


def run_net_case(path):
    from caffe2.proto import caffe2_pb2
    from caffe2.python import workspace

    case = load_net(path)
    net = caffe2_pb2.NetDef()
    net.ParseFromString(case["net"])
    workspace.ResetWorkspace()
    for name, a in case["inputs"].items():
        workspace.FeedBlob(name, a)
    workspace.RunNetOnce(net)
    bad = []
    for name, (want, deterministic) in case["outputs"].items():
        d = difference(workspace.FetchBlob(name), want, deterministic)
        if d:
            bad.append(f"blob {name}: {d}")
    return dict(cases=1, failed=int(bool(bad)), why=bad[:3])


# ---------------------------------------------------------------- gradients, schemas

def check_gradient(name, fact):
    from caffe2.proto import caffe2_pb2
    from caffe2.python import core

    g = fact["gradient"]
    op = caffe2_pb2.OperatorDef()
    op.ParseFromString(base64.b64decode(g["op"]))
    ops, _ = core.GradientRegistry.GetGradientForOp(op, g["output_grads"])
    got = [(o.type, list(o.input), list(o.output)) for o in ops]
    want = [(o["type"], o["input"], o["output"]) for o in g["ops"]]
    return None if got == want else f"makes {got}, expected {want}"


def check_schema(name, fact):
    from caffe2.python import workspace

    if name not in set(workspace.RegisteredOperators()):
        return "not registered"
    s = workspace.C.OpSchema.get(name)
    if s is None:
        return "no schema"

    def top(v):
        return None if v is None or v >= s.inf else v

    got = [[s.min_input, top(s.max_input)], [s.min_output, top(s.max_output)]]
    want = [fact["inputs"], fact["outputs"]]
    if got != want:
        return f"arity {got}, expected {want}"
    missing = [a for a in fact["args"] if a not in {x.name for x in s.args}]
    return f"arguments not described: {missing}" if missing else None


# ---------------------------------------------------------------- protos, api

def check_protos():
    from google.protobuf import descriptor_pb2, json_format

    want = reference("protos.json")
    result = {}
    for fname, fd in want.items():
        mod = "caffe2.proto." + os.path.basename(fname)[: -len(".proto")] + "_pb2"
        try:
            got = descriptor_pb2.FileDescriptorProto()
            importlib.import_module(mod).DESCRIPTOR.CopyToProto(got)
            got = json_format.MessageToDict(got)
        except Exception as e:
            result[fname] = brief(e)
            continue

        def flatten(d, prefix=""):
            out = {}
            for m in d.get("messageType", []) + d.get("nestedType", []):
                p = prefix + m["name"] + "."
                for f in m.get("field", []):
                    out[p + f["name"]] = tuple(
                        str(f.get(k, "")).split(".")[-1]
                        for k in ("number", "label", "type", "typeName", "defaultValue")
                    )
                out.update(flatten(m, p))
                for e in m.get("enumType", []):
                    for v in e["value"]:
                        out[p + e["name"] + "." + v["name"]] = (str(v.get("number", 0)),)
            for e in d.get("enumType", []):
                for v in e["value"]:
                    out[prefix + e["name"] + "." + v["name"]] = (str(v.get("number", 0)),)
            return out

        w, g = flatten(fd), flatten(got)
        for k in sorted(w):
            agree = g.get(k) == w[k]
            result[f"{fname}:{k}"] = None if agree else f"has {g.get(k)}, expected {w[k]}"
    return result


def signature_difference(value, want):
    """None where a call that the original accepts is accepted: no parameter name is missing."""
    if not want.startswith("("):
        return None
    try:
        got = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    depth, names, token = 0, [], ""
    for ch in want[1:].split(" -> ")[0].rstrip()[:-1] + ",":
        if ch in "([{":
            depth += 1
        elif ch in ")]}":
            depth -= 1
        if ch == "," and depth == 0:
            n = token.split("=")[0].split(":")[0].strip()
            if n:
                names.append(n)
            token = ""
        else:
            token += ch
    have = []
    for p in got.parameters.values():
        have.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name)
    kinds = {p.kind for p in got.parameters.values()}
    stars = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
    plain = [n for n in names if not n.startswith("*") and n not in ("self", "cls")]
    if stars:
        return None
    lost = [n for n in plain if n not in have and "**" not in "".join(h[:2] for h in have)]
    return f"parameters missing: {lost}" if lost else None


def check_api(only):
    want = reference("python_api.json")
    result = {}
    for module, names in sorted(want.items()):
        short = module.replace("caffe2.python.", "")
        if only and short not in only:
            continue
        if not names:
            continue
        try:
            mod = importlib.import_module(module)
        except BaseException as e:
            for n in names:
                result[f"{short}.{n}"] = "module: " + brief(e)
            continue
        for n, w in names.items():
            key = f"{short}.{n}"
            if not hasattr(mod, n):
                result[key] = "missing"
                continue
            v = getattr(mod, n)
            if isinstance(w, dict):
                result[key] = None
                for m, sig in w["members"].items():
                    present = hasattr(v, m)
                    result[f"{key}.{m}"] = (
                        signature_difference(getattr(v, m), sig) if present else "missing"
                    )
            else:
                result[key] = signature_difference(v, w) if callable(v) else None
    return result


# ---------------------------------------------------------------- driver

def isolated(function, *args, timeout=120):
    """Run function in a forked child; a crash or a hang becomes a result."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        signal.alarm(timeout)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        try:
            v = function(*args)
        except BaseException as e:
            v = dict(error=brief(e))
        with os.fdopen(w, "w") as f:
            f.write(json.dumps(v))
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f:
        text = f.read()
    _, status = os.waitpid(pid, 0)
    if status:
        return dict(error=f"killed by signal {status & 127}")
    return json.loads(text) if text else dict(error="no result")


def main():
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checks = ["operators", "nets", "gradients", "schemas", "protos", "api"]
    ap.add_argument("what", choices=checks)
    ap.add_argument("names", nargs="*")
    ap.add_argument("--cases", help="another folder of cases or nets")
    ap.add_argument("--failing", action="store_true")
    ap.add_argument("--json")
    a = ap.parse_args()
    import caffe2.python.workspace  # noqa: F401  loaded once, before the forks

    if a.what in ("operators", "nets"):
        folder = a.cases or os.path.join(HERE, "cases" if a.what == "operators" else "nets")
        ops = a.names or sorted(f[:-4] for f in os.listdir(folder) if f.endswith(".npz"))
        run = run_operator_cases if a.what == "operators" else run_net_case
        result = {op: isolated(run, os.path.join(folder, op + ".npz")) for op in ops}
        for r in result.values():
            r.setdefault("cases", 1)
            r.setdefault("failed", r["cases"])
        bad = {op: r for op, r in result.items() if r["failed"]}
        for op, r in sorted(bad.items()):
            why = r.get("error") or r["why"][0]
            print(op if a.failing else f"{op:48} {r['failed']} of {r['cases']} failed: {why}")
        cases = sum(r["cases"] for r in result.values())
        failed = sum(r["failed"] for r in result.values())
        print(
            f"{a.what}: {len(ops) - len(bad)} of {len(ops)} whole; "
            f"cases: {cases - failed} of {cases} pass"
        )
    else:
        if a.what in ("gradients", "schemas"):
            facts = reference("operators.json")
            key, f = dict(
                gradients=("gradient", check_gradient), schemas=("inputs", check_schema)
            )[a.what]
            ops = [o for o in a.names or sorted(facts) if key in facts[o]]
            result = {o: isolated(f, o, facts[o]) for o in ops}
        else:
            result = check_protos() if a.what == "protos" else check_api(a.names)
        bad = {k: v for k, v in result.items() if v}
        for k, v in sorted(bad.items()):
            print(k if a.failing else f"{k:48} {v.get('error') if isinstance(v, dict) else v}")
        print(f"{a.what}: {len(result) - len(bad)} of {len(result)} agree")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f, indent=1, sort_keys=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
