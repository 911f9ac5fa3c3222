"""The learner: warm start, reinforcement learning, checkpoints and evaluation, driven by `python -m learner.main`."""
