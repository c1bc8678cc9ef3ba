# SPDX-License-Identifier: Apache-2.0
"""pageferry.h becomes the Python module pageferry._native: the C library behind it, linked in whole.

cffi reads the header itself, so there is no second copy of a declaration that could drift. The library is
what native/Makefile builds, and the libraries it needs are those that native/Makefile names: neither is
listed here. Setuptools calls BuildNative (pyproject.toml) in place of its own build_ext.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from cffi import FFI
from setuptools.command.build_ext import build_ext

NATIVE = Path(__file__).resolve().parent
HEADER = NATIVE / "pageferry.h"
LIBRARY = NATIVE / "build" / "libpageferry.a"
SHIM = NATIVE / "build" / "pageferry-shim.so"
DIRECTIVE = re.compile(r"#\s*(\w+)")
CONSTANT = re.compile(r"(#\s*define\s+\w+\s+(?:0x[0-9A-Fa-f]+|\d+))[uU]?\s*")


def declarations(header: str) -> str:
    """The header without comments and preprocessor lines, save `#define NAME number`, which cffi takes if the
    number has no suffix."""
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    kept = []
    for line in code.splitlines():
        constant = CONSTANT.fullmatch(line)
        if constant or not DIRECTIVE.match(line):
            kept.append(constant[1] if constant else line)
    return "\n".join(kept)


def make(*arguments: str) -> str:
    """Runs native/Makefile; what it prints on stderr (a missing package by name) is the user's to read."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(NATIVE), *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}native/ext.py: make -C native {arguments[0]} failed")
    return done.stdout


class BuildNative(build_ext):
    """Builds the library and the module's C, made from the header; setuptools compiles and links the two."""

    def run(self) -> None:
        make("lib")
        make("shim")
        (extension,) = self.extensions
        source = Path(self.build_temp, "_native.c")
        source.parent.mkdir(parents=True, exist_ok=True)
        ffi = FFI()
        ffi.cdef(declarations(HEADER.read_text()))
        ffi.set_source(extension.name, '#include "pageferry.h"')
        ffi.emit_c_code(str(source))
        extension.sources = [str(source)]
        extension.depends = [str(HEADER), str(LIBRARY)]
        extension.include_dirs = [str(NATIVE)]
        extension.extra_objects = [str(LIBRARY)]
        extension.extra_link_args = make("--eval=libs: ; @echo $(LIBS)", "libs").split()
        extension.py_limited_api = True
        super().run()
        if not self.inplace:
            shipped = Path(self.build_lib, "pageferry", "bin", SHIM.name)
            shipped.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SHIM, shipped)
