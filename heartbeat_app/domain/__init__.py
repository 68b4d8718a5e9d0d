"""What a heartbeat is and why a record is rejected; pure: no clock, no I/O."""
