"""The demo's tables and its conclusions."""

from typing import NamedTuple

from ..decoding import Stats


class Result(NamedTuple):
    """The result of a setting.

    stats    merged over all its texts
    seconds  of whole calls, including the prompts
    calls    target calls that theory predicts for these texts; None if not computed (a batch)
    cut      how many of its texts were cut off by the clock
    """

    stats: Stats
    seconds: float
    calls: float | None
    cut: int = 0

    @property
    def speed(self):
        """Tokens per second; 0 if there was no time for any."""
        return self.stats.emitted / self.seconds if self.seconds else 0.0

    @property
    def call_seconds(self):
        """Seconds per target call, including its share of drafting, verification and prompt."""
        return self.seconds / max(1, self.stats.target_calls)


HEAD = f"{'T':>4}  {'scheme':<7}{'drafter':<9}{'depth':>5}{'batch':>6}  {'accepted by position':<22}" \
       f"{'tokens/call':>12}{'theory':>8}{'call':>7}{'tokens/s':>10}{'x plain':>9}"  # fmt: skip
SHOWN = 5  # positions whose acceptance fits in the table
LEGEND = """\
theory: tokens a call expected for the same texts, from the laws of target and draft at each position.
call: time of a target call with its drafts, in those of plain decoding; x plain is tokens/call over it. Prompts are included."""


def plain_setting(setting):
    """The setting for plain decoding of the same prompts."""
    return setting._replace(scheme=None, drafter=None, depth=0)


def plain_of(setting, measured):
    """The Result of plain decoding, measured before. measured: {Setting: Result}"""
    return measured[plain_setting(setting)]


def cost(setting, measured):
    """Time per target call, including drafting, relative to plain decoding."""
    return measured[setting].call_seconds / (plain_of(setting, measured).call_seconds or 1.0)


def factor(setting, measured):
    """Speed relative to plain decoding."""
    plain = plain_of(setting, measured).speed
    return measured[setting].speed / plain if plain else 0.0


def tables(measured):
    """A table per task as text, one line per setting."""
    lines = []
    for task in dict.fromkeys(setting.task for setting in measured):
        lines += ["", f"== {task.title}", HEAD]
        lines += [line(setting, measured) for setting in measured if setting.task == task]
    return "\n".join([*lines[1:], LEGEND, ""])


def line(setting, measured):
    """The line of one setting."""
    result = measured[setting]
    rates = result.stats.acceptance
    shown = " ".join(f"{rate:.2f}"[1:] if rate < 0.995 else "1.0" for rate in rates[:SHOWN]) + (" …" if len(rates) > SHOWN else "")
    row = f"{setting.temperature:>4g}  {setting.scheme or 'plain':<7}{setting.drafter or '-':<9}{setting.depth or '-':>5}{setting.batch:>6}"
    theory = f"{result.stats.emitted / result.calls:.2f}" if result.calls else "-"
    return (
        f"{row}  {shown if setting.drafter else '-':<22}{result.stats.block_efficiency:>12.2f}{theory:>8}{cost(setting, measured):>7.2f}"
        f"{result.speed:>10.1f}{factor(setting, measured):>9.2f}"
    )


def conclusion(measured):
    """The fastest setting of each task compared with plain decoding, and why. Empty if no drafting was measured."""
    drafted = [setting for setting in measured if setting.drafter]
    lines = []
    for task in dict.fromkeys(setting.task for setting in drafted):
        lines.append(verdict(max((s for s in drafted if s.task == task), key=lambda s: factor(s, measured)), measured))
    if any(cost(setting, measured) < 0.9 for setting in drafted):
        lines.append(
            "Disturbed: a call that reads drafts cannot be much quicker than a plain one. Other work on this machine moved the times."
        )
    return "\n".join(lines)


def verdict(setting, measured):
    """The conclusion from one setting, the best of its task."""
    result, plain, times = measured[setting], plain_of(setting, measured), factor(setting, measured)
    how = f"{setting.scheme} with {setting.drafter} drafts of {setting.depth}, T = {setting.temperature:g}"
    how += f", a batch of {setting.batch}" if setting.batch > 1 else ""
    said = f"{times:.2f} times plain decoding" if times > 1 else f"{times:.2f} times plain decoding, a loss"
    gain = result.stats.block_efficiency / (plain.stats.block_efficiency or 1.0)
    lines = [
        f"{setting.task.title}:",
        f"  at best {said} ({how}; {plain.speed:.1f} -> {result.speed:.1f} tokens/s).",
        f"  A call of the target gives {gain:.2f} tokens and takes {cost(setting, measured):.2f} times as long as a plain one.",
    ]
    if times < 1.5 and setting.task.change:
        lines += [f"  {text}" for text in setting.task.change.split("\n")]
    return "\n".join(lines)
