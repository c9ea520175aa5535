"""How values become text in the database, and come back.

Every stored value names its format, so an application can change its serializer and still read old rows:

=====================  ================================================================================================
``json``               written wherever a value survives it *exactly*: ``None``, ``bool``, ``int``, finite ``float``,
                       ``str``, lists, dicts with string keys; tagged, dates and times, ``timedelta``, ``Decimal``,
                       ``UUID``, ``bytes``, tuples and sets; no container in two places. Readable in SQL.
``py_pickle``          base64 of a pickle, for every other value.
``portable_json``      for programs in other languages; dates, tuples and sets are converted, not restored.
*the configured name*  whatever the application's own :class:`Serializer` makes.
=====================  ================================================================================================

A subclass of ``str`` or a list that appears twice would come back different from ``json``; a replayed workflow would
then see another value than the first run did. Hence the walk over each value before it is written.

Loading a pickle runs code that the database's contents choose. With ``allowed_serializers`` an application refuses
that: see :class:`Serialization`. Engine and client share one :class:`Serialization`; the console and the CLI use
:func:`load_for_display`, which never unpickles.

What is too large is refused by every ``dump_…``: values by :class:`SizeLimits`, attributes by a limit of their own.

Imports inside point down: serialization, errors, portable_json, exact_json, tagged_json, formats, limits, wording.
"""

from __future__ import annotations

from typing import Any  # noqa: F401 - the annotations of PortableWorkflowError are looked up where it says it lives

from .errors import PortableWorkflowError
from .formats import (
    JSON,
    PICKLE,
    PORTABLE_JSON,
    PickleSerializer,
    Serializer,
    WorkflowSerializationFormat,
)
from .limits import MAX_PAYLOAD_BYTES, WARN_PAYLOAD_BYTES, SizeLimits
from .portable_json import DBOSPortableJSONSerializer
from .serialization import Serialization, load_for_display

__all__ = [
    "JSON",
    "MAX_PAYLOAD_BYTES",
    "PICKLE",
    "PORTABLE_JSON",
    "WARN_PAYLOAD_BYTES",
    "DBOSPortableJSONSerializer",
    "PickleSerializer",
    "PortableWorkflowError",
    "Serialization",
    "Serializer",
    "SizeLimits",
    "WorkflowSerializationFormat",
    "load_for_display",
]

# Pickles name a class by its module, and stored ones outlive the files here: they name the package, which stays.
for _kind in (
    DBOSPortableJSONSerializer,
    PickleSerializer,
    PortableWorkflowError,
    Serialization,
    Serializer,
    WorkflowSerializationFormat,
):
    _kind.__module__ = __name__
del _kind
