"""Measures cases on a GPU one after another, writing each as soon as it is done, so that an interrupted run can be resumed.

For each case the tokens are compared with those of the reference and the CPU kernels, then our backends and the competitors are
timed on the same inputs. A competitor's failure costs only its own figures; if it ends the process, the next run names it and
leaves it out.
"""

import functools
import json
import time
from collections import Counter

import torch

import specsample as ss
from benchmarks import harness
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.clock import reason

OURS = "ours"
OPS = {"sample": ss.sample, "draft": ss.draft}  # the others are schemes of `verify`


class Results:
    """The JSON file: {"machine", ..., "rows": [one row per case]}

    again: measure again what is there
    """

    def __init__(self, path, machine, again=False):
        self.path, self.rows, self.head = path, {}, {"machine": machine, "crashed": {}, "running": None}
        old = json.loads(path.read_text()) if path.exists() else {}
        same = all(old.get("machine", {}).get(key) == machine.get(key) for key in ("gpu", "driver", "torch", "cuda"))
        if same:
            self.rows = {row["case"]: row for row in old["rows"]}
            self.head["crashed"] = old.get("crashed", {})
            if old.get("running"):  # that process ended before finishing it
                case, who = old["running"]
                self.head["crashed"].setdefault(case, []).append(who)
        self.replaced = bool(old) and not same
        self.again = again

    def done(self, case):
        """Whether a case was measured at this revision; a failed one is tried again"""
        row = self.rows.get(case.name, {"failed": "not tried"})
        return "failed" not in row and not self.again and row["revision"] == self.head["machine"]["revision"]

    def crashed(self, case):
        return self.head["crashed"].get(case.name, [])

    def running(self, case, who):
        self.head["running"] = [case.name, who]
        self.write()

    def add(self, row):
        self.head["running"] = None
        machine = self.head["machine"]
        self.rows[row["case"]] = {**row, "revision": machine["revision"], "date": harness.now()}
        self.write()

    @property
    def result(self):
        order = {case.name: i for i, case in enumerate(gpu_cases.grid())}
        return {**self.head, "rows": sorted(self.rows.values(), key=lambda row: order.get(row["case"], len(order)))}

    def write(self):
        harness.write_json(self.path, self.result)

    def write_table(self):
        self.path.with_suffix(".md").write_text(gpu_report.markdown(self.result))


# -- one case ----------------------------------------------------------------------------------------------------------


def calls_of(case, inputs, copies, backend=None, scheme=None):
    """Our calls, one per copy of the inputs"""
    op = OPS.get(scheme or case.scheme, ss.verify)
    given = [gpu_cases.arguments(case, inputs, copy, scheme) for copy in range(copies)]
    return [functools.partial(op, **args, backend=backend) for args in given]


def tokens_of(result):
    return (result.view(len(result), -1) if isinstance(result, torch.Tensor) else result.tokens).cpu()


def check(case, inputs, backends, agreement):
    """Tokens of our backends for the first copy: for all requests against the CPU kernels, if they are built, and for some
    against the reference. -> {"tokens", "differing", "requests": those with a differing token}"""
    seen, wrong = harness.Agreement(), 0
    few = min(case.B, 1 if case.V * case.L > 500_000 else 2)
    others = {"reference": few}
    if "cpu" in ss.build_info()["backends"] and "cpu" not in backends:
        others["cpu"] = case.B
    here = {name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in gpu_cases.arguments(case, inputs).items()}
    op = OPS.get(case.scheme, ss.verify)
    ours = {backend: tokens_of(calls_of(case, inputs, 1, backend)[0]()) for backend in backends}
    for name, requests in others.items():
        part = {n: x[:requests] if n in gpu_cases.BY_REQUEST else x for n, x in here.items()}
        expected = tokens_of(op(**part, backend=name))
        for got in ours.values():
            seen.count(got[:requests], expected)
            wrong += int((got[:requests] != expected).any(-1).sum())
    found = {"tokens": seen.tokens, "differing": seen.differing, "requests": wrong}
    agreement.update(found)
    return found


def figures(times, needed=None, copy=None):
    """A `Times` as written to the file"""
    out = {"us_cold": times.cold * 1e6, "us_warm": times.warm * 1e6, "us_eager": times.eager * 1e6}
    out |= {"launches": times.launches, "scratch_bytes": times.scratch}
    if needed is not None:
        out |= {"gbps": needed / times.cold / 1e9, "percent_of_copy": 100 * needed / times.cold / copy}
    return out | ({} if times.graph is None else {"graph": times.graph})


def peers_of(case, found, example):
    """{name: a function that makes the Peer}"""
    if case.scheme == "draft":
        return {name: (lambda name=name: gpu_peers.sampling_by(name, case.K)) for name in ("multinomial", "Gumbel")}
    if case.K > 1:
        return {}
    peers = {name: (lambda peer=peer: peer) for name, peer in found.get(case.scheme, {}).items()}
    peers = {name: peer for name, peer in peers.items() if case.B == 1 or name not in gpu_peers.ONE_REQUEST}
    if case.scheme == "sample":
        peers["argmax"] = gpu_peers.argmax
        if case.compiled_too:
            peers["Gumbel, torch.compile"] = lambda: gpu_peers.sampling_by("Gumbel", example=example)
    elif case.compiled_too:
        peers["torch.compile"] = lambda: gpu_peers.torch_compiled(case.scheme, example)
    return peers


def run_case(case, gpu, backends, agreement, found, results):
    """A row. backends: ours; the first is the one that competitors are compared with"""
    began = time.perf_counter()
    results.running(case, OURS)
    held = gpu_cases.inputs_of(case, 1, gpu.device).bytes
    copies = gpu.copies_for(gpu_cases.least_bytes(case), held)
    inputs = gpu_cases.inputs_of(case, copies, gpu.device)
    row = {"case": case.name, **case._asdict(), "copies": copies, "checked": check(case, inputs, backends, agreement)}
    calls = {backend: calls_of(case, inputs, copies, backend) for backend in backends}
    accepted = None
    if case.scheme not in gpu_cases.OF_ROWS:
        accepted = torch.cat([call().num_accepted for call in calls[backends[0]]])
        row["accepted"] = float(accepted.double().mean())
    needed = gpu_cases.bytes_needed(case, accepted)
    copy = gpu.copy(int(needed))
    row |= {"bytes_needed": needed, "copy_gbps": copy / 1e9}
    row["ours"] = {backend: figures(gpu.times(each), needed, copy) for backend, each in calls.items()}
    ours = row["ours"][backends[0]]
    if case.K > 1:
        single = gpu_cases.SINGLE[case.scheme]
        row["beside"] = {"scheme": single, **figures(gpu.times(calls_of(case, inputs, copies, backends[0], single)))}
        row["beside"]["ratio"] = ours["us_cold"] / row["beside"]["us_cold"]
    given = [_of_peers(case, inputs, i) for i in range(copies)]
    row["others"] = {}
    for name, make in peers_of(case, found, given[0]).items():
        if name in results.crashed(case):
            row["others"][name] = {"failed": "the process of an earlier run ended in it"}
            continue
        results.running(case, name)
        row["others"][name] = time_peer(gpu, make, given, held)
        if "whole" in row["others"][name]:
            row["others"][name]["ratio"] = row["others"][name]["whole"]["us_cold"] / ours["us_cold"]
    row["seconds"] = time.perf_counter() - began
    return row


def _of_peers(case, inputs, copy):
    """(target [B, L + 1, V], tokens [B, L], draft [B, L, V], sampling)"""
    part = slice(copy * case.B, (copy + 1) * case.B)
    if case.scheme in gpu_cases.OF_ROWS:
        return inputs.target[part], None, None, case.sampling
    tokens = inputs.tokens[ss.schemes()[case.scheme].draft_kind][part]
    return inputs.target[part], tokens, inputs.draft[part], case.sampling


def time_peer(gpu, make, given, held):
    """{"whole", "verify", "note"} or {"failed": reason}. held: bytes of one copy of the logits"""
    try:
        peer = make()
        out = {"whole": figures(gpu.times([functools.partial(peer.call, *inputs) for inputs in given]))}
        several = max(1, min(len(given), 64, int(0.2 * gpu.free / (3 * held))))  # float32, and the temporaries
        made = [peer.prepare(*inputs) for inputs in given[:several]]
        out["verify"] = figures(gpu.times([functools.partial(peer.verify, each) for each in made], profiled=False))
        return out | ({"note": peer.note} if peer.note else {})
    except Exception as error:
        gpu.after_failure()
        return {"failed": reason(error)}


# -- many cases --------------------------------------------------------------------------------------------------------


def peers_for(schemes, device, say, which=None):
    """({scheme: {name: Peer}}, {name: why it is left out}, [names whose law was checked])"""
    found, left_out, checked = {}, {}, []
    for scheme in schemes:
        found[scheme], missing = gpu_peers.loaded(scheme, which)
        left_out |= missing
        for name, peer in list(found[scheme].items()):
            try:
                if scheme != "race":  # its drafts share the target's noise; independent ones would not
                    gpu_peers.check(f"{name}, {scheme}", peer, device, one=name in gpu_peers.ONE_REQUEST)
                    checked.append(f"{name} {scheme}")
            except Exception as error:
                left_out[f"{name}, {scheme}"] = reason(error)
                del found[scheme][name]
    for name, why in left_out.items():
        say(f"left out: {name}: {why}")
    return found, left_out, checked


def run(cases, gpu, path, machine, backends, say=print, again=False, limit=None, which=None):
    """Measures `cases`, writes path (JSON) and a table beside it. -> [what went wrong]

    limit: seconds after which no further case begins; which: competitors in place of gpu_peers.PEERS
    """
    began, results, agreement = time.perf_counter(), Results(path, machine, again), Counter()
    if results.replaced:
        say(f"{path} is of another machine or versions: begun anew")
    todo = [case for case in cases if not results.done(case)]
    say(f"{len(todo)} cases to measure, {len(cases) - len(todo)} are there")
    failed = []
    if todo:
        results.head["copy_gbps"] = gpu.copy() / 1e9
        say(f"device-to-device copy {results.head['copy_gbps']:.0f} GB/s, both directions counted")
        compared = {scheme for _, schemes in gpu_peers.PEERS.values() for scheme in schemes}
        schemes = {case.scheme for case in todo if case.K == 1} & compared
        found, left_out, checked = peers_for(sorted(schemes), gpu.device, say, which)
        results.head |= {"left_out": {**results.head.get("left_out", {}), **left_out}, "checked_laws": checked}
    try:
        for i, case in enumerate(todo):
            if limit and time.perf_counter() - began > limit:
                say(f"time is up: {len(todo) - i} cases left; the next run goes on")
                break
            if OURS in results.crashed(case):
                row = {"case": case.name, **case._asdict(), "failed": "the process of an earlier run ended in it"}
            else:
                try:
                    row = run_case(case, gpu, backends, agreement, found, results)
                except Exception as error:
                    gpu.after_failure()
                    row = {"case": case.name, **case._asdict(), "failed": reason(error)}
            if "failed" in row:
                failed.append(f"{case.name}: {row['failed']}")
            results.add(row)
            say(f"{i + 1}/{len(todo)} {gpu_report.line(row)}")
    finally:
        results.head["agreement"] = {name: agreement[name] for name in ("tokens", "differing", "requests")}
        results.head["running"] = None
        results.write()
        results.write_table()
    if agreement["requests"] > max(1, 1e-4 * agreement["tokens"]):  # one request within rounding of a boundary is excused
        failed.append(f"the tokens of {agreement['requests']} requests differ from the reference's")
    return failed
