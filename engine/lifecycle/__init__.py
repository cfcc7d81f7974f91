"""The verbs, one file each: the only place that orders writes. Each module's docstring is the story of its verb, with
its steps, its one commit point and what a crash between two steps leaves (put right by `engine.lifecycle.recover`)."""
