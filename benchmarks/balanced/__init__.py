"""Replicas behind a balancer, killed and scaled under load: what benchmarks.replicas and tests/deploy/test_replicas are made of.

names.py      a name server: the name has an address for each replica, as a headless Service's has
fleet.py      replicas, as processes or containers: started, told to stop, killed
balancer.py   HAProxy or nginx in front of them, with the configuration that users are given
callers.py    ways to ask: our clients, which ask again, and plain ones, which do not
load.py       callers who ask without pause, and what became of each request
report.py     tables of it
"""
