"""This project's worker with less of its roll-ups, to see what they cost it.

    fewer_roll_ups.py marks-only|none worker …

With marks-only each batch marks its minutes, and no job works them out; with none there
are no marks either.
"""

from __future__ import annotations

import sys

from heartbeat_app.__main__ import main
from heartbeat_app.storage.rollup import marks, rollup


def leave_out(which: str) -> None:
    """Before the app is made."""
    rollup.Job.run_pass = lambda self, stopped=None: True  # type: ignore[method-assign]
    if which == "none":
        marks.marking = lambda timestamps: []


if __name__ == "__main__":
    leave_out(sys.argv.pop(1))
    main()
