"""The front end as one ES module: the JavaScript files beside this one, joined in the order in which they need each other."""

from __future__ import annotations

import re
from importlib import resources

IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)
FOLDER = resources.files("msdetr.viz.page")


def joined(entry: str = "app.js") -> str:
    """A module and all that it imports as one module, which exports what they export. The files import by plain names from each
    other alone, and no two give a top-level thing the same name, so leaving out the imports is all it takes."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for needed in IMPORT.findall(source(name)):
                visit(needed)
            order.append(name)

    visit(entry)
    return "\n".join(f"// ---- {name}\n{IMPORT.sub('', source(name)).strip()}\n" for name in order)


def source(name: str) -> str:
    """The text of a file of the front end."""
    return (FOLDER / name).read_text(encoding="utf-8")
