"""What the demo measures: a task where speculation pays off, one where it does not, and the settings for decoding each."""

from typing import NamedTuple

from ..schemes import SCHEMES

FUNCTIONS = '''def area(width, height):
    """Area of a rectangle."""
    return width * height


def perimeter(width, height):
    """Length of its border."""
    return 2 * (width + height)


def diagonal(width, height):
    """Distance between opposite corners."""
    return (width**2 + height**2) ** 0.5
'''
EDIT = f"Write this code again, with the name `width` changed to `length`:\n\n```python\n{FUNCTIONS}```"
SPELLING = (
    "Correct the spelling and repeat the text: The old ferry crosses the river twice a day. In the morning the ferry "
    "carries workers to the harbor, and in the evening the ferry carries them home across the river agian."
)
CORRECTION = (
    f"{SPELLING} The captain has worked on the ferry for thirty years, and he knows every one of the workers by name. "
    "On Sundays the ferry carries families to the market on the other side of the river."
)
QUESTIONS = (
    "Why do leaves change their colour in autumn?",
    "Give me some tips for a long train journey with two small children.",
)
BATCH = 4


class Task(NamedTuple):
    """Prompts of one kind. tokens: new tokens per prompt; change: what would change the outcome if drafting does not pay off."""

    name: str
    title: str
    prompts: tuple
    tokens: int
    temperatures: tuple
    change: str = ""


COPY = Task(
    "copy", "Text that copies from its prompt: a correction, an edit of three functions", (CORRECTION, EDIT), 128, (0.5, 0.0)
)
OPEN = Task(
    "open", "Open-ended text: two questions", QUESTIONS, 48, (1.0, 0.0),
    "What would change it: a draft model that is right more often, or a target whose call over several tokens costs hardly more than\n"
    "over one, as on accelerators and with larger models.",
)  # fmt: skip


class Setting(NamedTuple):
    """A row of a table. scheme and drafter are None for plain decoding; depth: tokens drafted per round; batch: prompts per call."""

    task: Task
    temperature: float
    scheme: str | None
    drafter: str | None
    depth: int
    batch: int = 1

    def texts(self):
        """How many calls of generate it takes."""
        return 1 if self.batch > 1 else len(self.task.prompts)


POINTS = {("ngram", "race", 16), ("student", "block", 1)}
DEPTHS = {"copy": {"ngram": (16, 8, 4), "student": (1,)}, "open": {"ngram": (3,), "student": (1,)}}


def tasks(options):
    """The tasks selected on the command line. options: the namespace of cli.parser"""
    chosen = [COPY, OPEN] if options.task is None else [{"copy": COPY, "open": OPEN}[options.task]]
    if options.prompt:
        chosen = [OPEN._replace(title="The given prompts", prompts=tuple(options.prompt), change="")]
    return [task._replace(tokens=options.tokens or task.tokens) for task in chosen]


def choose(options, student):
    """The settings to measure, task by task: for each temperature, plain decoding and the drafters compared with it.

    student: whether there is a draft model
    """
    settings = []
    for task in tasks(options):
        for temperature in task.temperatures if options.temperature is None else [options.temperature]:
            settings.append(Setting(task, temperature, None, None, 0))
            for name in drafters(options, task, student):
                for depth in [options.depth] if options.depth else DEPTHS[task.name][name]:
                    settings += [Setting(task, temperature, scheme, name, depth) for scheme in schemes(options, name, temperature)]
        if task.name == "copy":
            plain, drafted = settings[:2]
            settings.append(plain._replace(batch=BATCH))
            settings.append(drafted._replace(batch=BATCH, depth=options.depth or 8))
    return settings


def by_importance(settings):
    """The order of measuring, since time may run out: for each task plain decoding and the setting that makes its point, then
    the rest at its first temperature, the other temperature, the batch."""
    first = {}
    for setting in settings:
        first.setdefault(setting.task, setting.temperature)

    def rank(setting):
        if setting.batch > 1 or setting.temperature != first[setting.task]:
            return 3 if setting.batch > 1 else 2
        point = setting.drafter is None or (setting.drafter, setting.scheme, setting.depth) in POINTS
        return 0 if point else 1

    return sorted(settings, key=rank)


def drafters(options, task, student):
    """Names of the drafters for a task; none if the scheme needs a draft distribution but there is no draft model, or look-up was chosen."""
    # Where look-up finds the text, a draft model only costs more.
    able = ["ngram"] if options.scheme is None or SCHEMES[options.scheme].one_hot else []
    if student and (task.name == "open" or not able or options.drafter):
        able.append("student")
    return [name for name in able if options.drafter in (None, name)]


def schemes(options, drafter, temperature):
    """The schemes to measure. Greedy rows and look-ups are one-hot: there all schemes accept equally, so one is enough."""
    if options.scheme:
        return [options.scheme]
    return ["token", "block", "race"] if drafter == "student" and temperature > 0 else ["race"]
