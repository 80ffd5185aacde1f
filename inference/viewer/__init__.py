"""Views of a posterior: figures, an HTML page, tables. Works with the posterior of any model."""
