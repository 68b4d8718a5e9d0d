"""What the tests, the proof and the benchmarks share: real servers, and an oracle."""
