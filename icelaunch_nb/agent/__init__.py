"""torch's LocalElasticAgent, subclassed; one process per run and machine.
The only room that knows torch elastic's insides.
"""
