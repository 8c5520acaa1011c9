"""Evaluation protocols: one question of a representation each, one file each, found by themselves.

base        what every protocol is given and gives back: `Material`, `System`, `Outcome`
registry    all of them by name, their options, and `run`
deferred    NumPy and the judge, imported when a protocol runs

What each protocol answers, by which formulae and where they come from: `docs/protocols.md`.
"""
