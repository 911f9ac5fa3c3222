"""Scores generated radiology reports against references: backends, a gRPC server, clients and a command line.

Contract: works with nothing else of the system running. Importing a client or `spec` loads no model library.

    metric    scorer (what a backend is), backends/, radcliq/ and text/ (their parts), spec (formulas, the reward)
    server    server, service, batching, security, selfcheck, metrics, logs
    clients   client (threads), aio_client, and what they share: calls, questions, links; integrations (TRL, OpenRLHF)
    commands  cli, scoring, tables, pairs, progress, gallery, scale_cli, radcliq.weights_cli
    in Ray    worker (an actor with a server), keeper (watches workers), directory (how others see them),
              cluster (how to reach them)
"""
