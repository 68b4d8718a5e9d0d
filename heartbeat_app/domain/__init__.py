"""What a heartbeat is, and why a record is rejected. Pure: no clock, no I/O."""
