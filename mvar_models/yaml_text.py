"""YAML as settings need it: text to values and back, bounded, with errors of one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mvar_models.records import bounded, read_text, reason_in_line, shown

_MOST_BYTES = 1 << 20  # PyYAML takes ten seconds for as much


class _Loader(yaml.SafeLoader):
    """PyYAML's, but a key given twice is an error, and so are references, which can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has references (*name), which no settings need")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        twins = [name for name in names if names.count(name) > 1]
        if twins:
            raise ValueError(f"it has a key twice: {shown(twins[0])}")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text.
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, but text that `_Loader` reads as a number is quoted."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def yaml_of(values: Any) -> str:
    """Return values as the YAML that `read_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of at most a megabyte.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, or is nested too deeply; one line names the file.
    """
    text = read_text(path, _MOST_BYTES)
    try:
        return bounded(yaml.load(text, _Loader))
    except Exception as error:  # PyYAML's constructors raise their own, KeyError, AttributeError and more
        raise ValueError(f"{path} is not valid YAML: {reason_in_line(error)}") from None
