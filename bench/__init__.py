"""Benchmarks: this library, its peer on PyPI and the same work written by hand, on one machine in one run.

``make bench`` measures what is usual, ``make bench-scale`` what there is very much of, ``make bench-soak`` a million
workflows in one process; ``make bench ARGS="--quick --only sequential-steps"`` measures a part.

    __main__     the command line
    catalogue    what is measured, in which unit, and what we want to reach
    runner       who runs when: ours, peer, floor, ours, peer, floor …, each run in a fresh process on a fresh database
    workloads    the work itself, one script for both libraries (a worker process)
    floor        the same work written by hand on the bare driver (a worker process)
    scale        what there is very much of, for our library alone (a worker process)
    network      a relay to PostgreSQL that is as slow as a network
    costs        what operations cost, counted rather than timed
    databases    SQLite files, and a PostgreSQL server with real durability
    sides        the interpreters that run the workers
    machine      what the figures were taken on
    report, plot the table and the picture

See docs/performance.md for what the figures mean.
"""
