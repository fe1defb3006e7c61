"""Importers of public data sets, a module each."""
