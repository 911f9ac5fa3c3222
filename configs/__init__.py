"""Hydra groups `exp data model rollout reward learner cluster` over the dataclasses of `configs.schema`.

Importable without torch. `configs.load.register()` must run before Hydra composes.
"""
