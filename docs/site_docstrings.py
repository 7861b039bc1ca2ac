"""The package's docstrings as Markdown for the API reference.

They describe arguments as `name  text` in columns, continued by indented lines, results after `->` and errors after `Errors:`. Here
each such block becomes a table, and the rest stays as it is.
"""

import re

import griffe

NAME = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*)$")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text):
    """A docstring as Markdown."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(block_of(block) for block in blocks)


def block_of(block):
    """A block of lines: one that is indented or a table already stays, columns become a table, the rest is text."""
    lines = block.split("\n")
    if all(line.startswith("    ") for line in lines) or lines[0].startswith("|"):
        return block
    rows, text = [], []
    for n, line in enumerate(lines):
        item = re.match(r"^([A-Za-z_]\w*(?:, \w+)*)  +(\S.*)$", line)
        alone = NAME.match(line) and n + 1 < len(lines) and lines[n + 1].startswith("      ")
        if item or alone:
            rows.append([line.strip() if alone else item[1], "" if alone else item[2]])
        elif rows and line.startswith("   "):
            rows[-1][1] += " " + line.strip()
        else:
            text.append((len(rows), line))
    if not rows:
        return safe("\n".join(result(line) for line in lines))
    before = [line for at, line in text if at == 0]
    after = [line for at, line in text if at > 0]
    table = ["| name | meaning |", "|---|---|"] + [
        f"| {names(name)} | {safe(said).replace('|', '&#124;')} |" for name, said in rows
    ]
    parts = [safe("\n".join(map(result, before))), "\n".join(table), safe("\n".join(map(result, after)))]
    return "\n\n".join(part for part in parts if part)


def names(text):
    return ", ".join(f"`{name}`" for name in text.split(", "))


def result(line):
    """`-> what` and `Errors:` stand out, on lines of their own."""
    line = re.sub(r"^-> ?", "\n**Returns** ", line)
    return re.sub(r"^(Errors|Source):", r"\n**\1**:", line)


def safe(text):
    """What Markdown would take for markup or a link, outside code."""
    pieces = re.split(r"(`[^`]*`)", text)
    escaped = [piece if n % 2 else re.sub(r"(?<!\*)\*(?!\*)", r"\\*", piece).replace("_", r"\_").replace("[", r"\[").replace("<", "&lt;")
               for n, piece in enumerate(pieces)]  # fmt: skip
    return "".join(escaped)
