"""Scores generated radiology reports against references: backends, a gRPC server, its client and a command line.

Contract: works with nothing else of the system running. Importing the client or `spec` loads no model library.
"""
