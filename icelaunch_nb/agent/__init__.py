"""torch's LocalElasticAgent, subclassed. The only room that knows torch elastic's insides.

There is one process per run and machine.
"""
