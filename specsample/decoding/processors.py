"""`logits_processor=` and `stopping_criteria=` of generate, as in transformers: how a caller changes the distribution and the end.

A processor is called as processor(input_ids, scores) and returns the new scores: input_ids int64 [n, len], the tokens of a
request so far without padding, followed by those on the path to a draft; scores [n, V], the model's logits after them, float32
(float64 if the model's are). It must be a function of its arguments alone: the rows of a call may come from any requests and
branches and from the draft model, and may recur in a later round. It never sees a text that it has itself forbidden.
A scheme verifies against the distribution of the processed rows, with `sampling`'s filters applied after them, and drafts are drawn
from processed rows too. So every scheme stays exact, and its acceptance does not suffer.

A criterion is called as criterion(input_ids, None) after each kept token, input_ids int64 [1, len]; if it returns true
(a bool, or a tensor of them), the text ends with that token.
"""

import copy

import torch

from ..errors import expect

# Processors of transformers whose result depends on earlier calls.
STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")


def of_requests(given, name, batch):
    """-> a list for each of `batch` requests, one object if they share it. given: None, a list of callables, or B such lists"""
    given = [] if given is None else given
    expected = f"a list of functions of (input_ids, scores), or {batch} such lists, one a request"
    expect(isinstance(given, (list, tuple)), name, expected, type(given).__name__)
    lists = list(given)
    if lists and all(isinstance(each, (list, tuple)) for each in lists):
        expect(len(lists) == batch, name, expected, f"{len(lists)} lists")
        lists = [list(each) for each in lists]
    else:
        lists = [lists] * batch
    for each in lists:
        for function in each:
            good = callable(function) and not isinstance(function, (list, tuple))
            expect(good, name, expected, type(function).__name__)
            stateful = type(function).__name__ in STATEFUL
            expect(not stateful, name, "functions of their arguments alone", f"{type(function).__name__}, which keeps a state")
    return lists


class Processors:
    """The processors of each request, for rows of the target and the draft."""

    def __init__(self, lists, width=None):
        """width: vocabulary size of the target, None if it is not known before the first call"""
        self.lists, self.width = lists, width
        # transformers' PrefixConstrainedLogitsProcessor passes on the row index, which must be the request's.
        if any(hasattr(f, "_prefix_allowed_tokens_fn") for each in lists for f in each):
            self.lists = [[_of_request(f, b) for f in each] for b, each in enumerate(lists)]

    def target(self, logits, prefixes, nodes, active):
        """-> the target's rows [B, R, V], processed. nodes: for each request its nodes (row, parent's row, token), parents before
        children, row 0 being the prefix's. Rows below a forbidden token are left unprocessed, as are finished requests."""
        self.width = logits.shape[-1]
        texts = [[()] if on else [None] for on in active]
        for b, (text, own) in enumerate(zip(texts, nodes)):
            text.extend([None] * (logits.shape[1] - 1))
            nodes[b] = own if active[b] else []
        logits = _wide(logits)
        self._apply(logits, prefixes, texts)
        level = [{0} for _ in texts]
        while True:
            below = [(b, *node) for b, own in enumerate(nodes) for node in own if node[1] in level[b]]
            below = [node for node in below if 0 <= node[3] < self.width]
            if not below:
                return logits
            index = torch.tensor(below).to(logits.device)
            allowed = (logits[index[:, 0], index[:, 2], index[:, 3]] > -torch.inf).tolist()
            level, fresh = [set() for _ in texts], [[None] * len(text) for text in texts]
            for (b, row, above, token), good in zip(below, allowed):
                if good:
                    level[b].add(row)
                    texts[b][row] = fresh[b][row] = texts[b][above] + (token,)
            self._apply(logits, prefixes, fresh)

    def draft(self, logits, prefixes, texts):
        """-> rows of a draft [B, R, V'], processed; of the target's width, if known. texts: for each request and row, the tuple of
        tokens after its prefix; None = leave the row unprocessed"""
        width = self.width or logits.shape[-1]
        logits = _wide(logits[..., :width])
        logits = torch.nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
        self._apply(logits, prefixes, texts)
        return logits

    def _apply(self, logits, prefixes, texts):
        """Process in place. Rows with texts of equal length and the same processors share one call."""
        lengths, calls = prefixes.lengths.tolist(), {}
        for b, rows in enumerate(texts):
            for row, text in enumerate(rows):
                if text is not None and self.lists[b]:
                    calls.setdefault((id(self.lists[b]), lengths[b] + len(text)), []).append((b, row, text))
        for (_, length), rows in calls.items():
            request, row, text = zip(*rows)
            request, row = torch.tensor([request, row]).to(logits.device)
            ids = _texts(prefixes, request, text, length)
            scores = logits[request, row]
            for processor in self.lists[rows[0][0]]:
                shape = tuple(scores.shape)
                scores = processor(ids, scores)
                good = isinstance(scores, torch.Tensor) and tuple(scores.shape) == shape
                got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
                expect(good, "logits_processor", f"scores of shape {shape} from {type(processor).__name__}", got)
            logits[request, row] = scores.to(logits.dtype)


def _wide(logits):
    """A copy in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)


def _texts(prefixes, request, text, length):
    """int64 [n, length]: for each row the prefix of its request, then its own tokens. text: n tuples"""
    device, most = prefixes.tokens.device, max(map(len, text))
    ids = torch.nn.functional.pad(prefixes.tokens[:, :length], (0, max(0, length - prefixes.tokens.shape[1])))[request]
    if most:
        own = torch.tensor([(0,) * (most - len(each)) + each for each in text], device=device)
        counts = torch.tensor([most - len(each) for each in text], device=device)[:, None]
        ids[:, -most:] = torch.where(torch.arange(most, device=device) >= counts, own, ids[:, -most:])
    return ids


def _of_request(processor, b):
    known = getattr(processor, "_prefix_allowed_tokens_fn", None)
    if known is None:
        return processor
    own = copy.copy(processor)
    own._prefix_allowed_tokens_fn, own._num_beams = lambda _, ids: known(b, ids), 1
    return own


def first_stop(criteria, tokens, length, count):
    """How many of the `count` tokens after the first `length` of tokens [1, W] are kept; None = all, and the text continues."""
    for end in range(length + 1, length + count + 1) if criteria else ():
        # All criteria are called, as transformers does.
        said = [criterion(tokens[:, :end], None) for criterion in criteria]
        if any(bool(x.any()) if isinstance(x, torch.Tensor) else bool(x) for x in said):
            return end - length
    return None
