"""RadGraph: entities and relations of reports, batched, and the F1 of two reports' graphs."""

from reward_server.radcliq.radgraph.graph import Entity, Graph, RadGraphF1, graph_f1, to_json
from reward_server.radcliq.radgraph.model import RadGraphModel

__all__ = ["Entity", "Graph", "RadGraphF1", "RadGraphModel", "graph_f1", "to_json"]
