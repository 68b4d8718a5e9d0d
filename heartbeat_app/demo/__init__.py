"""The whole application on one machine, without Docker: what `scripts/demo` shows."""

from heartbeat_app.demo.run import run_demo

__all__ = ["run_demo"]
