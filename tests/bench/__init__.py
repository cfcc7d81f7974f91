"""The measurement of serac against its floor and its peers; `scripts/bench` starts it.

Everything is compared within one run, interleaved, on one machine: ratios are what holds elsewhere, and times are not.
Each scenario is a function in a module of its own (`scenarios.SCENARIOS`) and leaves nothing on the host.
"""
