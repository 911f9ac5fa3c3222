"""The reward in a browser: two reports typed, their components, their graphs, and what of these agrees."""
