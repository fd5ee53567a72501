"""Imported last by the forkserver: its children get what is there now as it is, and leave it alone.

Frozen for the garbage collector: the first collection in each rank would touch, and so copy, most of the pages that the fork
shared.
"""

import gc

from icelaunch_nb import cpython

cpython.keep_finalizers_from_children()
gc.collect()
gc.freeze()
