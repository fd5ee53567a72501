"""icelaunch_nb beside its peers: measured in turn in one session, shown as medians and ratios.

    python -m venv .venv-benchmarks
    .venv-benchmarks/bin/pip install -r benchmarks/requirements.txt -e .
    .venv-benchmarks/bin/python -m benchmarks --out table.md     # ten to fifteen minutes on two cores; --quick: about five

Every contender lives in a process of its own, shaped like a notebook's kernel (`kernel`), which holds what it needs between
launches. The session (`session`) asks one after the other, A B C A B C, with half a second between two launches as a person
would leave, so that a noisy minute of the machine falls on all of them. Times are `time.time()` of the caller and of the ranks.
What is measured, and the bound that each figure has to keep, stands in `figures` (warm) and `cold` (from nothing).
"""
