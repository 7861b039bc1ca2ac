"""A stand-in for torch.cuda, with its own clock, for GPU benchmarks on a machine without a GPU."""

import contextlib
from types import SimpleNamespace


class Cuda:
    """Like torch.cuda. Work is what calls `spend`: it takes its time at once, or, while a graph is captured, at each replay"""

    TICK = 1e-7  # seconds between two events with nothing between them

    def __init__(self):
        self.now, self.graph_in_capture, self.peak, self.allocated, self.captured = 0.0, None, 0, 0, 0

    def spend(self, seconds, waits=False):
        if self.graph_in_capture is None:
            self.now += seconds
        elif waits:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore about it")
        else:
            self.graph_in_capture.seconds += seconds

    def clock(self):
        self.now += self.TICK
        return self.now

    def get_device_properties(self, index):
        return SimpleNamespace(L2_cache_size=1 << 13, multi_processor_count=4)

    def mem_get_info(self):
        return 1 << 30, 1 << 31

    def memory_allocated(self):
        return self.allocated

    def max_memory_allocated(self):
        return self.peak

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def take(self, size):
        """A call that temporarily allocates `size` bytes"""
        self.peak = max(self.peak, self.allocated + size)

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock())
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(seconds=0.0)
        graph.replay = lambda: self.spend(graph.seconds)
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        assert self.graph_in_capture is None
        self.graph_in_capture, self.captured = graph, self.captured + 1
        try:
            yield
        finally:
            self.graph_in_capture = None

    def Stream(self):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    @contextlib.contextmanager
    def stream(self, stream):
        yield

    def synchronize(self):
        assert self.graph_in_capture is None, "a synchronisation while a graph is captured"

    empty_cache = staticmethod(lambda: None)
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "Fake GPU 1")
    get_device_capability = staticmethod(lambda: (9, 0))


def fake_torch():
    return SimpleNamespace(__version__="0.0", version=SimpleNamespace(cuda="13.0"), cuda=Cuda())
