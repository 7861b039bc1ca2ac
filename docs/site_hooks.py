"""What the documentation site adds to docs/: pages of files elsewhere in the repository, and links that lead to them.

The pages are written to be read in the repository too, so their links are relative to docs/.
"""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("quickstart.py", "with_transformers.py", "engine_loop.py", "batched_packed.py", "own_drafter.py", "laws.ipynb")
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
PAGES |= {f"examples/{name}": f"examples/{Path(name).stem}.md" for name in EXAMPLES}
LINK = re.compile(r"(\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Pages of the repository's own files, and the figures that pages show."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=content(ROOT / name)))
    shown = {link for page in (ROOT / "docs").glob("*.md") for link in re.findall(r"!\[[^]]*\]\(\.\./([^)]+)\)", page.read_text())}
    for link in sorted(shown):
        files.append(File.generated(config, f"figures/{Path(link).name}", abs_src_path=str(ROOT / link)))
    return files


def content(path):
    """A file as Markdown."""
    text = path.read_text()
    if path.suffix == ".py":
        return f"# {path.name}\n\n```python\n{text}```\n"
    return notebook(json.loads(text)) if path.suffix == ".ipynb" else text


def notebook(parts):
    """A notebook's cells, code with what it printed and drew."""
    out = []
    for cell in parts["cells"]:
        source = "".join(cell["source"])
        out.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                out.append("```text\n" + "".join(output["text"]) + "```")
            else:
                out.append(f'<img alt="figure" src="data:image/png;base64,{output["data"]["image/png"]}">')
    return "\n\n".join(out) + "\n"


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/, as the site needs them. A file that has no page is named as it is."""

    def mend(match):
        text, path, anchor = match[1], match[2], match[3] or ""
        if page.file.src_uri in PAGES.values():
            path = f"../{path}"
        if not path.startswith("../"):
            return match[0]
        path = path.removeprefix("../")
        if path in PAGES:
            return f"{text}({PAGES[path]}{anchor})"
        if path.startswith("docs/"):
            return f"{text}({path.removeprefix('docs/')}{anchor})"
        return f"{text}(figures/{Path(path).name})" if path.endswith(".png") else f"`{path}`"

    return LINK.sub(mend, markdown)
