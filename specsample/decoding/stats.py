"""Counts and times of a call of `generate`."""

import time
from dataclasses import dataclass, field

PHASES = ("prefill", "draft", "target", "verify", "other")


@dataclass
class Stats:
    """Counts and times of one `generate`; `print(stats)` shows a table.

    target_calls  forward calls of the target, the prefill included (it already verifies drafts)
    rounds        rounds, summed over requests: how often a request took part in a target call
    emitted       new tokens, after cutting at eos
    reached       list: how often the i-th draft of a round was tested (it existed, and those before it were accepted)
    accepted      list: how often it was accepted
    out_of_positions  rounds, summed over requests, with fewer drafts than requested because the draft model ran out of positions
    seconds       dict of host seconds by phase: prefill (the first target call), draft, target, verify, other. On an
                  accelerator, work is attributed to the phase in which the host waits for it.
    """

    target_calls: int = 0
    rounds: int = 0
    emitted: int = 0
    reached: list = field(default_factory=list)
    accepted: list = field(default_factory=list)
    out_of_positions: int = 0
    seconds: dict = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @property
    def block_efficiency(self):
        """Tokens per target call and request; 1 for plain decoding."""
        return self.emitted / self.rounds if self.rounds else 0.0

    @property
    def acceptance(self):
        """Acceptance rate by depth: accepted / reached."""
        return [a / r if r else 0.0 for a, r in zip(self.accepted, self.reached)]

    @property
    def tokens_per_second(self):
        total = sum(self.seconds.values())
        return self.emitted / total if total else 0.0

    def count(self, requests):
        """Add one round: for each active request, how many tokens were emitted, accepted and proposed."""
        self.target_calls += 1
        self.rounds += len(requests)
        for emitted, accepted, proposed in requests:
            self.emitted += emitted
            self.extend(proposed)
            for depth in range(min(emitted, accepted + 1, proposed)):
                self.reached[depth] += 1
            for depth in range(min(emitted, accepted, proposed)):
                self.accepted[depth] += 1

    def extend(self, depth):
        """Extend the counts to at least `depth` entries."""
        for counts in (self.reached, self.accepted):
            counts.extend([0] * (depth - len(counts)))

    def add(self, other):
        """Add the counts and times of another call."""
        self.target_calls += other.target_calls
        self.rounds += other.rounds
        self.emitted += other.emitted
        self.out_of_positions += other.out_of_positions
        self.extend(len(other.reached))
        for mine, theirs in ((self.reached, other.reached), (self.accepted, other.accepted)):
            mine[: len(theirs)] = [a + b for a, b in zip(mine, theirs)]
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds

    def __str__(self):
        lines = [
            f"{'target calls':<18}{self.target_calls:>8}",
            f"{'tokens emitted':<18}{self.emitted:>8}",
            f"{'block efficiency':<18}{self.block_efficiency:>8.2f}  tokens per target call and request",
        ]
        if self.out_of_positions:
            lines.append(f"{'past the draft':<18}{self.out_of_positions:>8}  rounds of requests beyond the draft's positions")
        if self.reached:
            lines.append(f"{'draft position':<18}" + "".join(f"{i + 1:>8}" for i in range(len(self.reached))))
            for name in ("reached", "accepted"):
                lines.append(f"  {name:<16}" + "".join(f"{n:>8}" for n in getattr(self, name)))
            lines.append(f"{'  acceptance':<18}" + "".join(f"{rate:>8.3f}" for rate in self.acceptance))
        lines.append(f"{'seconds':<18}" + "".join(f"{phase:>9}" for phase in PHASES) + f"{'total':>9}")
        times = [self.seconds[phase] for phase in PHASES]
        lines.append(" " * 18 + "".join(f"{t:>9.3f}" for t in times + [sum(times)]))
        return "\n".join(lines)


class Laps:
    """A stopwatch: `laps(phase)` adds the time since the last lap to `phase`."""

    def __init__(self, seconds):
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, phase):
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now
