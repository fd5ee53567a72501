"""THE AGENT: torch's LocalElasticAgent, subclassed; one process per run. The only room that knows torch elastic's insides."""
