"""A census of Python's standard library that is killed while it works, and comes out complete.

Read :mod:`.pipeline` first: it is the application, and all that a user would write. The rest is the demonstration
around it: :mod:`.source` measures files, :mod:`.witness` writes down what really ran, :mod:`.__main__` starts and
kills processes, :mod:`.progress` shows that, :mod:`.control` does the same work without the library, :mod:`.proof`
judges the evidence and :mod:`.report` prints it.
"""
