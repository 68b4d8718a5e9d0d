"""The proof: faults on real servers, judged by an oracle that knows what was sent."""
