"""The fuzzer of the decoder, what it compares with, and what it has found."""
