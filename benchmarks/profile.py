"""A budget for every stage of recording, checking and starting, and a picture of it: :mod:`budget` has all of it.

    python benchmarks/profile.py [--quick] --json FILE

A module of Python's own library has the same name. Whoever imports that from a program in this folder (PyTorch's compiler does) is
given it.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    from budget import main

    main()
else:
    spec = importlib.util.spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "profile.py")
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    sys.modules[__name__] = library
    spec.loader.exec_module(library)
