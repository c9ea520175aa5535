"""What users test their workflows with: virtual time, and, through the pytest plugin, databases of a test's own.

The fixtures are listed in ``docs/howto/testing.md``; pytest finds them wherever the library is installed.
"""

from dbos.testing._virtual_time import VirtualTime, virtual_time

__all__ = ["VirtualTime", "virtual_time"]
