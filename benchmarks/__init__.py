"""Random-weight checkpoints in the published formats, report pairs, and speed measurements on both."""
