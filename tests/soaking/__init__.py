"""Mixed operations on a root, beside a model of what must come of them.

`files` and `world` are the model: pure values. `acts` has the operations as an engine does them, here or in a process
that is killed, `stage` compares the two after each, and `run` is ``scripts/soak``. tests/test_state_machine.py has
hypothesis choose the operations.
"""
