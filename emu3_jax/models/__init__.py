"""The networks: pure functions of parameters and arrays, described by frozen dataclasses."""
