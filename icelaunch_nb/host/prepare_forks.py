"""Prepares a forkserver for its forks. The forkserver imports this module last.

It freezes all objects for the garbage collector. Otherwise the first collection in each rank would
touch, and so copy, most of the pages that the fork shares.
"""

import gc

from icelaunch_nb.host import huge_pages
from icelaunch_nb.launching import process_state
from icelaunch_nb.system import cpython

process_state.read_fresh_torch()
cpython.disable_finalizers_at_exit()
cpython.disable_log_handlers_at_exit()
gc.collect()
gc.freeze()
huge_pages.collapse()
