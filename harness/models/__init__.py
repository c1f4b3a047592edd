"""The models of the grid: their cards, their layers' roles, and how their folders are loaded."""
