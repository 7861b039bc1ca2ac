"""The clock of the GPU benchmarks: device time by CUDA graphs, eager time, launches, scratch memory, copy bandwidth.

Everything goes through `torch.cuda`, which the tests replace. What is timed is a list of calls, one for each copy of the inputs:
a graph of all of them, replayed back to back, finds its inputs outside the second-level cache if the copies together exceed
it; a graph that repeats the first call finds them inside.
"""

import contextlib
import math
import statistics
import time
from typing import NamedTuple

import torch

LARGE = 512 << 20  # bytes of the copy whose bandwidth is the yardstick; smaller reads are compared with a copy of their size
SHORTEST = 2e-4  # seconds: shorter graphs repeat the calls, so that the cost of a replay is negligible
MOST_CALLS = 1024  # in one graph


class Times(NamedTuple):
    cold: float  # seconds per call on the device, inputs outside the second-level cache
    warm: float  # the same with one set of inputs for all calls
    eager: float  # seconds per call made from Python back to back, inputs as in `cold`
    launches: int | None  # kernels, copies and fills per call; None if the profiler reports nothing
    scratch: int  # bytes: rise of the peak during a call, including its results
    graph: str | None  # why the call cannot be captured, in which case cold and warm are between events around eager calls; or None


class Gpu:
    """A CUDA device and its clock.

    cuda: like torch.cuda; clock: seconds; profile: call -> number of launches, or None (the tests replace all three)
    """

    def __init__(self, cuda=torch.cuda, device="cuda", clock=time.perf_counter, profile=None, budget=0.05, repetitions=15):
        self.cuda, self.device, self.clock, self.repetitions = cuda, device, clock, repetitions
        self.profile, self.budget = profile or launches, budget
        self._copies = {}

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def cache(self):
        """Bytes of the second-level cache"""
        return getattr(self.cuda.get_device_properties(0), "L2_cache_size", None) or 64 << 20

    @property
    def free(self):
        """Bytes of memory available, including those that torch holds in reserve"""
        self.cuda.empty_cache()
        return self.cuda.mem_get_info()[0]

    def copies_for(self, touched, held):
        """How many copies of the inputs make each call find its own outside the cache; a call reads `touched` bytes and a copy
        takes `held` bytes."""
        if touched >= 4 * self.cache:
            return 1
        return max(2, min(MOST_CALLS, math.ceil(2 * self.cache / max(touched, 1)), int(0.3 * self.free / max(held, 1))))

    # -- times ---------------------------------------------------------------------------------------------------------

    def graph_of(self, calls):
        """-> replay: the calls as one CUDA graph, so that their launches do not wait for Python"""
        self.warmed(calls[0])
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def warmed(self, call, times=3):
        """Called on a side stream first, as capture requires: kernels are loaded, workspaces allocated."""
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for _ in range(times):
                call()
        self.cuda.current_stream().wait_stream(stream)
        self.cuda.synchronize()

    def between_events(self, run):
        """Device seconds between events around `run`, the median over repetitions"""
        run()
        taken = []
        while len(taken) < self.repetitions and (len(taken) < 3 or sum(taken) < self.budget):
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) * 1e-3)
        return statistics.median(taken)

    def replayed(self, calls):
        """Seconds per call, from a graph of all `calls` replayed back to back"""
        replay = self.graph_of(calls)
        once = self.between_events(replay)
        more = min(50, math.ceil(SHORTEST / max(once, 1e-7)))  # several replays back to back
        return self.between_events(lambda: [replay() for _ in range(more)]) / more / len(calls)

    def eager(self, calls):
        """Seconds per call made from Python, until the device is done"""
        rounds = []
        begin = self.clock()
        while len(rounds) < self.repetitions and (len(rounds) < 3 or self.clock() - begin < 2 * self.budget):
            self.cuda.synchronize()
            start = self.clock()
            for call in calls:
                call()
            self.cuda.synchronize()
            rounds.append((self.clock() - start) / len(calls))
        return statistics.median(rounds)

    def times(self, calls, profiled=True):
        """Times of a call. calls: one for each copy of the inputs; profiled: also count launches, which takes a while"""
        self.warmed(calls[0])
        some = calls[: max(1, min(len(calls), 64))]
        eager, scratch, count = self.eager(some), self.scratch(calls[0]), self.profile(calls[0]) if profiled else None
        same = max(1, min(20, math.ceil(SHORTEST / max(eager, 1e-7)))) * [calls[0]]
        try:
            cold, warm = self.replayed(calls), self.replayed(same)
            why = None
        except Exception as error:  # for example, a call that synchronises
            self.after_failure()
            why = reason(error)
            cold, warm = (self.between_events(lambda c=c: [f() for f in c]) / len(c) for c in (some, same))
        return Times(cold, warm, eager, count, scratch, why)

    def after_failure(self):
        """A failed capture leaves its error behind, which the next call would report."""
        with contextlib.suppress(RuntimeError):
            self.cuda.synchronize()

    # -- memory --------------------------------------------------------------------------------------------------------

    def scratch(self, call):
        self.cuda.synchronize()
        self.cuda.reset_peak_memory_stats()
        before = self.cuda.memory_allocated()
        result = call()
        self.cuda.synchronize()
        peak = self.cuda.max_memory_allocated() - before
        del result
        return peak

    def copy(self, size=None):
        """Bytes per second, both directions counted, of a device-to-device copy of `size` bytes, LARGE at most, outside the cache

        Sizes are rounded to a quarter of a power of two, and each is measured once.
        """
        step = round(4 * math.log2(min(max(size or LARGE, 256), LARGE)))
        if step not in self._copies:
            size = int(2 ** (step / 4)) // 16 * 16
            n = self.copies_for(2 * size, 2 * size)
            source = torch.zeros(n, size, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            calls = [lambda i=i: target[i].copy_(source[i]) for i in range(n)]
            self._copies[step] = 2 * size / self.replayed(calls)
        return self._copies[step]


def launches(call):
    """Kernels, copies and fills that one call puts on the device, as reported by the profiler; None if it reports nothing"""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
            call()
            torch.cuda.synchronize()
    except RuntimeError:  # another tool holds the counters
        return None
    return sum(event.device_type == DeviceType.CUDA for event in record.events()) or None


def reason(error):
    """An exception as one line"""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
