"""The objectives of RL, put together of parts: advantages, surrogates, reductions, KL, correction, values.

Contract: pure functions of arrays and tensors without state, each with the paper and the equation that it comes from.
docs/algorithms.md says which parts make which named algorithm and how to add one.
"""
