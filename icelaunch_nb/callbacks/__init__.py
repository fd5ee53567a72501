"""What `Context.steps` does for a loop of one's own, for the loops of other frameworks; each is imported only if it is asked for.

    from icelaunch_nb.callbacks.lightning import IceCallback       # Trainer(callbacks=[IceCallback()])
    from icelaunch_nb.callbacks.transformers import IceCallback    # Trainer(..., callbacks=[IceCallback()])
    from icelaunch_nb.callbacks.accelerate import steps            # for batch in steps(accelerator, loader):

With each of them, pause, stop and checkpoint requests act at one and the same step on all ranks of a machine, the panel shows
progress, and metrics are kept as by `Context.report`. They work under plain torchrun too.
"""
