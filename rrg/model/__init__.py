"""LM-RRG's model: region extractor over a frozen image backbone, and a causal LM that writes the report."""
