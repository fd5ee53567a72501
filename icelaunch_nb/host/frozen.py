"""Imported last by the forkserver: what is there now is shared with every rank, so the garbage collector leaves it alone.

Otherwise the first collection in each rank would touch, and so copy, most of the pages that the fork shared.
"""

import gc

gc.collect()
gc.freeze()
