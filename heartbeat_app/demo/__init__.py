"""Everything on one machine: what `scripts/demo` runs."""

from heartbeat_app.demo.run import run_demo

__all__ = ["run_demo"]
