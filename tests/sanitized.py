"""Run tests over an extension that was built with sanitizers: `make sanitize`.

    python tests/sanitized.py EXTENSION [PYTEST ARGUMENTS]

The extension takes the place of the package's own. The sanitizers' libraries must be preloaded.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

NAME = "headrace.runtime.backends.cpu._native"


def main(extension: str, *arguments: str) -> int:
    """The exit status of the tests. A fault that a sanitizer finds ends the process at once."""
    spec = importlib.util.spec_from_file_location(NAME, extension)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{extension} is no extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return int(pytest.main(["-q", *arguments]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
