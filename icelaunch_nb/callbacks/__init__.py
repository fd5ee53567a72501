"""What `Context.steps` does for a plain loop, for the loops of other frameworks.

    from icelaunch_nb.callbacks.lightning import IceCallback
    Trainer(callbacks=[IceCallback()])

    from icelaunch_nb.callbacks.transformers import IceCallback
    Trainer(..., callbacks=[IceCallback()])

    from icelaunch_nb.callbacks.accelerate import steps
    for batch in steps(accelerator, loader): ...

Pause, stop and checkpoint requests act at one and the same step on all ranks of a machine. The
panel shows progress, and metrics are kept as by `Context.report`. All of it works under plain
torchrun too. Each module imports its framework, so none is imported here.
"""
