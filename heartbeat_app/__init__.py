"""Real-time heartbeat monitoring: every beat from Kafka into PostgreSQL, once.

`heartbeat_app.app` is the Faust app, for `faust -A heartbeat_app …`. It is made when
first asked for, so that importing a part of the package reads no settings.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "app":
        from heartbeat_app.worker.application import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
