"""The bundled emoji models: data, recipes, objectives, and what ships of a run."""
