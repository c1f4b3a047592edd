"""Record schema, statistics, tables and pictures. Imports nothing else of the project, and no torch."""
