"""The supervisor of a root: it looks at jobs and does by itself what nobody asks for.

What runs and does nothing is frozen (hot), then paused (warm), and in the end only images of it are left (cold); what
asks to be paused is; when memory is short the longest idle go first; what nobody needs is collected, what is to be
archived is, and what engines left that died is put right.

    with Engine("/var/lib/serac") as engine, Supervisor(engine) as supervisor:
        supervisor.run()  # until supervisor.stop()

Looking (`engine.lifecycle.activity`), knowing (`watch`), deciding (`decide`) and doing (`supervisor`) are apart.
"""

from engine.supervisor.decide import Action, Facts, Pressure, decide
from engine.supervisor.notify import notify
from engine.supervisor.supervisor import Done, Supervisor
from engine.supervisor.unit import unit

__all__ = ["Action", "Done", "Facts", "Pressure", "Supervisor", "decide", "notify", "unit"]
