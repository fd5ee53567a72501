"""Measures icelaunch_nb and its peers in turn, in one session, and shows medians and ratios.

    python -m venv .venv-benchmarks
    .venv-benchmarks/bin/pip install -r benchmarks/requirements.txt -e .
    .venv-benchmarks/bin/python -m benchmarks --out table.md

This takes ten to fifteen minutes on two cores, and about five with ``--quick``.

Every contender has a process of its own, built like a notebook's kernel (`kernel`). It keeps what
the contender needs between launches. The session (`session`) launches with one contender after the
other, A B C A B C, so that a noisy minute of the machine affects all of them. It leaves half a
second between two launches, as a person would. Times are `time.time()` of the caller and of the
ranks. `figures` (warm) and `cold` (in a new process) say what is measured, and the bound that each
figure has to keep.
"""
