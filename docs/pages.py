"""The site's pages that are not in docs/, and links as they are in the site; for mkdocs."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("examples/*.py", "kernels/*.cu*", "maskq_cupy/*.py", "tests/*.py")
# Modules whose functions are documented besides those of the package itself.
MODULES = ("reference", "cp", "flex", "fa4", "flashmask")


def on_files(files, config):
    """Add the README, CONTRIBUTING, the API, the examples, and the files that pages link to."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "api.md": api(),
        "examples.md": examples(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for pattern in LINKED:
        for path in ROOT.glob(pattern):
            name = str(path.relative_to(ROOT))
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **context):
    """Turn links between files of the checkout into links between pages."""
    markdown = re.sub(r'(\]\(|src=")(?:\.\./|docs/)', r"\1", markdown)
    markdown = markdown.replace("](examples)", "](examples.md)")
    markdown = markdown.replace("](CONTRIBUTING.md)", "](contributing.md)")
    # A table for the layout, which the README has for want of another: its content stays.
    return re.sub(r"^(<table><tr><td>|</td><td>|</td></tr></table>)$", "", markdown, flags=re.M)


def api():
    package = ROOT / "maskq_cupy" / "__init__.py"
    names, sources = public_names(package), imported(package)
    parts = ["# API", *(f"::: maskq_cupy.{name}" for name in names if name not in MODULES)]
    for module in MODULES:
        parts.append(f"## maskq_cupy.{module}")
        for name in public_names(ROOT / "maskq_cupy" / f"{module}.py"):
            if sources.get(name) != f"maskq_cupy.{module}":  # else it has an entry above
                parts.append(f"::: maskq_cupy.{module}.{name}")
    return "\n\n".join(parts) + "\n"


def imported(path):
    """Return the module that each name of a file is imported from."""
    imports = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)
    )
    return {alias.name: node.module for node in imports for alias in node.names}


def public_names(path):
    """Return `__all__` of a file, or the functions in it whose docstrings say what they raise."""
    body = ast.parse(path.read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return [
        f.name for f in functions if f.name[0] != "_" and "Raises:" in (ast.get_docstring(f) or "")
    ]


def examples():
    lines = ["# Examples", ""]
    for path in sorted((ROOT / "examples").glob("*.py")):
        head = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        lines.append(f"- [{path.stem}](examples/{path.name}): {head}")
    return "\n".join(lines) + "\n"
