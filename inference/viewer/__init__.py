"""Posteriors to look at: figures, a page to open in a browser, tables. Works with the posterior of any model."""
