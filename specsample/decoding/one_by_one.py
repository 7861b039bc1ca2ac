"""A batch of requests for a model that cannot read them together: each has its own cache and its own forward calls.

Some models count positions by cache slots, and some read a whole text differently once it is long; with either, another request
of a different length would change a request's tokens.
"""

from .proposal import Prefixes


class OneByOne:
    """Behaves like one CachedModel (or tree reader) over B requests. each: list of B of them"""

    def __init__(self, each):
        self.each = each
        self.read_before = [(0, None)] * len(each)  # for each request, the length of its last prefix and the logits after it

    def room(self, length):
        return self.each[0].room(length)

    def __call__(self, prefixes, more, real=None):
        """As in CachedModel; each request is fed only its own drafts."""
        rows = []
        for b, (one, prefix) in enumerate(zip(self.each, _split(prefixes))):
            drafts = more[b].tolist()
            count = max((i + 1 for i, token in enumerate(drafts) if token >= 0), default=0)
            count = count if real is None else min(count, real[b])
            length, row = self.read_before[b]
            if count or length != int(prefix.lengths):  # a finished request is not read again
                row = one(prefix, more[b : b + 1, :count])
                self.read_before[b] = int(prefix.lengths), row[:, :1]
            rows.append(row)
        return _joined(rows, 1 + more.shape[1])

    def step(self, tokens, going=None):
        going = going or [True] * len(self.each)
        rows = [one.step(token[None])[:, None] if on else None for one, token, on in zip(self.each, tokens, going)]
        return _joined(rows, 1)[:, 0]

    # -- trees ------------------------------------------------------------------------------------------------

    def start(self, prefixes):
        for one, prefix in zip(self.each, _split(prefixes)):
            one.start(prefix)
        self.size = 0

    def insert(self, b, *nodes):
        self.each[b].insert(0, *nodes)

    def read(self):
        more, first = max(len(one.fresh[0]) for one in self.each), self.each[0].pending is not None
        rows = []
        for one in self.each:
            rows.append(one.read() if first or one.fresh[0] else None)
            one.size = self.size + more  # places are numbered as in a batch: with gaps
        self.size += more
        return _joined(rows, first + more)

    def follow(self, tokens):
        for one, row in zip(self.each, tokens):
            one.follow([row])

    @property
    def fresh(self):
        return [one.fresh[0] for one in self.each]

    @property
    def known(self):
        return [one.known[0] for one in self.each]


def _split(prefixes):
    return [Prefixes(prefixes.tokens[b : b + 1], prefixes.lengths[b : b + 1]) for b in range(len(prefixes))]


def _joined(rows, count):
    """The rows of each request, [1, n, V] or None, stacked: [B, count, V], zeros where a request has none."""
    like = next(x for x in rows if x is not None)
    out = like.new_zeros(len(rows), count, like.shape[-1])
    for b, x in enumerate(rows):
        if x is not None:
            out[b, : x.shape[1]] = x[0]
    return out
