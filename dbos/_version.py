"""The version of the library, as installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]

try:
    VERSION = version("opendbos")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0.0.0"
