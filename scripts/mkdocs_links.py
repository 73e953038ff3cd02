"""Hook of mkdocs: links that leave docs/ work on GitHub and become file names on the site.

`[the kernels](../mvar_kernels/x.py)` stays a link on GitHub; the site, which has no such page, shows the text
and the path. A path that does not exist fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    root = Path(config.config_file_path).parent

    def replace(match: re.Match[str]) -> str:
        text, path = match.groups()
        if not (root / path).exists():
            raise PluginError(f"{page.file.src_path}: the link to {path} leads nowhere")
        return f"`{path}`" if path.endswith(text) else f"{text} (`{path}`)"

    return _OUTSIDE.sub(replace, markdown)
